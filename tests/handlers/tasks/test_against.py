"""text-ranking and sentence-similarity: from the model's outputs to their answers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from handlers.base import Found
from handlers.inputs.texts.against import Against
from handlers.tasks.text.ranking import TextRankingHandler
from handlers.tasks.text.sentence_similarity import SentenceSimilarityHandler

VALUE = Against("q", ("a", "b", "c"))


def found(*rows: Any) -> list[Found[Any]]:
    return [Found(VALUE, [None] * len(rows), [np.array(row, np.float32) for row in rows])]


def test_texts_are_sorted_by_score() -> None:
    """Logits ln 3, 0, ln 3: shares 3/4, 1/2, 3/4; of equal ones the first text stands first."""
    handler, outputs = TextRankingHandler(), found([np.log(3)], [0.0], [np.log(3)])
    answer = [{"index": 0, "score": 0.75}, {"index": 2, "score": 0.75}, {"index": 1, "score": 0.5}]
    (told,) = handler.answers(outputs, {})
    assert [one["index"] for one in told] == [0, 2, 1]
    assert [one["score"] for one in told] == pytest.approx([one["score"] for one in answer])
    (raw,) = handler.answers(outputs, {"raw_scores": True, "return_text": True})
    assert [(one["index"], one["text"]) for one in raw] == [(0, "a"), (2, "c"), (1, "b")]
    assert raw[0]["score"] == pytest.approx(np.log(3))


def test_of_two_labels_the_second_is_relevance() -> None:
    """Its share by softmax is the sigmoid of the difference: here 1/4, 3/4, 1/2."""
    (told,) = TextRankingHandler().answers(found([np.log(3), 0], [0, np.log(3)], [5, 5]), {})
    assert [one["index"] for one in told] == [1, 2, 0]
    assert [one["score"] for one in told] == pytest.approx([0.75, 0.5, 0.25])


def test_rankings_are_compared_by_text() -> None:
    handler = TextRankingHandler()
    stored = [{"index": 1, "score": 0.8}, {"index": 0, "score": 0.4}]
    assert handler.compare(stored, [{"index": 0, "score": 0.44}, {"index": 1, "score": 0.8}]) == pytest.approx(0.05)
    assert handler.compare(stored, stored[:1]) == float("inf")


def test_similarities_by_hand() -> None:
    """To (3, 4): itself 1, (4, −3) 0, (−6, −8) −1."""
    (told,) = SentenceSimilarityHandler().answers(found([3, 4], [3, 4], [4, -3], [-6, -8]), {})
    assert told == pytest.approx([1, 0, -1])


@pytest.mark.parametrize("handler", [TextRankingHandler(), SentenceSimilarityHandler()])
def test_what_is_not_finite_is_no_answer(handler: Any) -> None:
    with pytest.raises(ArithmeticError, match="the model's answer is not finite"):
        handler.answers(found([1.0], [np.nan]), {})
