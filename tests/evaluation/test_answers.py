"""Answers are counted as SQuAD's script counts them."""

from __future__ import annotations

import pytest

from archiver.evaluation.metrics.answers import answer_metrics, normalized, overlap


def test_normalisation_drops_case_punctuation_and_articles() -> None:
    assert normalized("The  Bell-Tower, an Apple!") == "belltower apple"
    assert normalized("theatre") == "theatre"
    assert normalized("a. The") == ""


@pytest.mark.parametrize(
    ("gold", "said", "expected"),
    [("one two", "two three four", 2 * 1 / 5), ("x x y", "x x z", 2 * 2 / 6), ("", "", 1.0), ("", "a", 0.0)],
)
def test_overlap_of_words(gold: str, said: str, expected: float) -> None:
    assert overlap(gold, said) == pytest.approx(expected)


def test_the_best_of_the_true_answers_counts() -> None:
    right = [["the bell", "gold statue"], ["Bern"], []]
    found = ["a gold statue of Mary", "in Bern", ""]
    metrics = answer_metrics(right, found)
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["f1"] == pytest.approx((2 * 2 / 6 + 2 / 3 + 1) / 3)
    assert answer_metrics([[]], ["something"]) == {"exact_match": 0.0, "f1": 0.0}
