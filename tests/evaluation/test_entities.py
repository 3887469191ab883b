"""Entities are counted as seqeval counts them."""

from __future__ import annotations

import pytest

from archiver.evaluation.metrics.entities import entities_of, entity_metrics, strict_entities_of


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)], [("PER", 0, 1), ("LOC", 3, 3)]),
        ("O I-PER I-PER", [("PER", 1, 2)], []),  # without its B-
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)], [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)], [("PER", 0, 0)]),
        ("B-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)], [("PER", 0, 0)]),
        ("S-PER S-PER B-LOC E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 3)], [("LOC", 2, 2)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 1)], [("creative-work", 0, 1)]),
        ("O O", [], []),
        ("", [], []),
    ],
)
def test_entities_of_one_sentence(tags: str, lenient: list[object], strict: list[object]) -> None:
    assert entities_of(tags.split()) == lenient
    assert strict_entities_of(tags.split()) == strict


def test_metrics_by_hand() -> None:
    # Four true entities, three found of which two are right: precision 2/3, recall 1/2, F1 4/7.
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "B-PER"]]
    found = [["B-PER", "I-PER", "O", "O"], ["I-ORG", "I-ORG", "B-PER"]]
    original = [["B-PER", "I-PER", "O", "B-LOC"], ["I-ORG", "I-ORG", "B-PER"]]
    metrics = entity_metrics(right, found, original)
    assert metrics["precision"] == pytest.approx(2 / 3)
    assert metrics["recall"] == pytest.approx(2 / 4)
    assert metrics["f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert metrics["strict_f1"] == pytest.approx(2 * 2 / (2 + 4))  # I-ORG I-ORG is none
    assert metrics["accuracy"] == pytest.approx(4 / 7)
    assert metrics["agreement"] == pytest.approx(6 / 7)


def test_nothing_to_count_is_zero() -> None:
    metrics = entity_metrics([["O"]], [["O"]], [["O"]])
    assert metrics == {"f1": 0, "precision": 0, "recall": 0, "strict_f1": 0, "accuracy": 1, "agreement": 1}
