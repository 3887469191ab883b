"""Spans are found as transformers 4's QuestionAnsweringPipeline found them: a plain reading of it is written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from handlers.inputs.texts.windows import Window
from handlers.tasks.text.spans import find_spans, probabilities

CONTEXT = "Anna Smith lives in Bern, Anna works in Basel"
NULL = 101


def window_of(first: int, count: int) -> Window:
    """[CLS] question [SEP] and `count` two-letter tokens of the context from `first`, of 3 characters each, then [SEP]."""
    tokens = range(3, 3 + count)
    offsets = [(0, 0), (0, 3), (0, 0), *((3 * n, 3 * n + 3) for n in range(first, first + count)), (0, 0)]
    words: list[int | None] = [None, 0, None, *((first + n) // 2 for n in range(count)), None]
    return Window(
        [NULL, 7, 102, *range(200, 200 + count), 102], [0] * (count + 4), offsets, words, tokens, tokens, first, 0
    )


def reference(
    context: str, windows: list[Window], logits: list[np.ndarray], top_k: int, longest: int, null: bool
) -> Any:
    """The pipeline, over all pairs of tokens one by one."""
    answers: list[dict[str, Any]] = []
    least = 1e6
    for window, rows in zip(windows, logits, strict=True):
        allowed = [place in window.text or window.ids[place] == NULL for place in range(len(window.ids))]
        both = []
        for column in (0, 1):
            masked = [float(rows[place, column]) if allowed[place] else -10000.0 for place in range(len(allowed))]
            shares = np.exp(np.array(masked) - max(masked))
            both.append(shares / shares.sum())
        start, end = both
        least = min(least, start[0] * end[0])
        pairs = [(-start[s] * end[e], s, e) for s in window.text for e in window.text if s <= e < s + longest]
        for score, s, e in sorted(pairs)[: 2 * top_k + 10]:
            inside = [place for place in window.text if window.words[place] in (window.words[s], window.words[e])]
            begin, stop = window.offsets[inside[0]][0], window.offsets[inside[-1]][1]
            text = context[begin:stop]
            same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
            if same is not None:
                same["score"] -= score
            else:
                answers.append({"score": -score, "start": begin, "end": stop, "answer": text})
    if null:
        answers.append({"score": least, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


@pytest.mark.parametrize("top_k", [1, 3, 20])
@pytest.mark.parametrize("longest", [1, 4, 100])
@pytest.mark.parametrize("null", [False, True])
def test_spans_over_windows_equal_the_pipeline(top_k: int, longest: int, null: bool) -> None:
    rng = np.random.default_rng(top_k * 100 + longest)
    windows = [window_of(0, 8), window_of(6, 9)]
    # Rows behind a window's tokens are padding, and must not matter.
    logits = [rng.normal(size=(len(window.ids) + 3, 2)).astype(np.float32) * 3 for window in windows]
    options: dict[str, Any] = {"top_k": top_k, "max_answer_len": longest, "handle_impossible_answer": null}
    found = find_spans(CONTEXT, windows, logits, **options)
    expected = reference(CONTEXT, windows, logits, top_k, longest, null)
    assert [answer | {"score": 0} for answer in found] == [answer | {"score": 0} for answer in expected]
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in expected], abs=2e-6)


def test_a_span_by_hand() -> None:
    # Two tokens, start 3 : 1 and end 1 : 3, without a null token: 0.75 · 0.75 for both, 0.75 · 0.25 for either.
    window = Window([5, 6], [0, 0], [(0, 4), (5, 10)], [0, 1], range(2), range(2), 0)
    logits = np.log(np.array([[3.0, 1.0], [1.0, 3.0]], np.float32))
    found = find_spans("Anna Smith", [window], [logits], top_k=3)
    assert found == [
        {"score": 0.5625, "start": 0, "end": 10, "answer": "Anna Smith"},
        {"score": 0.1875, "start": 0, "end": 4, "answer": "Anna"},
        {"score": 0.1875, "start": 5, "end": 10, "answer": "Smith"},
    ]
    # The second token alone is half of a word: aligned, it is the whole word.
    half = Window([5, 6], [0, 0], [(0, 2), (2, 4)], [0, 0], range(2), range(2), 0)
    low = np.array([[-9.0, -9.0], [9.0, 9.0]], np.float32)
    assert find_spans("Anna", [half], [low])[0]["answer"] == "Anna"
    assert find_spans("Anna", [half], [low], align_to_words=False)[0]["answer"] == "na"


def test_the_question_is_no_answer_and_no_context_gives_none() -> None:
    window = window_of(0, 4)
    logits = np.zeros((8, 2), np.float32)
    logits[1] = 99.0  # the question's token
    start, end = probabilities(window, logits)
    assert start.tolist() == pytest.approx([0.2, 0, 0, 0.2, 0.2, 0.2, 0.2, 0]) and end.sum() == pytest.approx(1)
    empty = Window([NULL, 7, 102, 102], [0] * 4, [(0, 0)] * 4, [None] * 4, range(3, 3), range(3, 3), 0, 0)
    assert find_spans("\u200b", [empty], [np.zeros((4, 2), np.float32)]) == []
