"""Word error rates, counted by hand."""

from __future__ import annotations

import pytest

from archiver.evaluation.metrics.transcripts import plain_words, transcript_metrics


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don’t — stop, 'now'!", "don't stop now"),
        ("  THE\tcat.\n", "the cat"),
        ("It's 3 o'clock…", "it's 3 o'clock"),
        ("«Größe», naïve", "größe naïve"),
        ("…", ""),
    ],
)
def test_words_as_they_are_counted(text, plain):
    assert plain_words(text) == plain


def test_by_hand():
    # Of five words one is replaced and one is missing; of eleven letters and blanks …
    found, said = ["a big cat", "the"], ["A big hat.", "the dog"]
    metrics = transcript_metrics(found, ["a big cat", "the dog"], said)
    assert metrics["wer"] == pytest.approx(2 / 5)
    assert metrics["word_accuracy"] == pytest.approx(3 / 5)
    assert metrics["cer"] == pytest.approx(5 / 16, abs=1e-6)
    assert metrics["agreement"] == 0.5


def test_more_words_than_were_said():
    metrics = transcript_metrics(["a b c d"], ["a"], ["a"])
    assert (metrics["wer"], metrics["word_accuracy"]) == (3.0, 0.0)


def test_without_transcripts_only_the_original_is_compared_with():
    assert transcript_metrics(["a", "b"], ["a", "c"], ["a", None]) == {"agreement": 0.5}
