"""The best spans of a context by start and end logits over its windows.

Source: the QuestionAnsweringPipeline of transformers 4 (pipelines/question_answering.py; transformers 5 has none).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from handlers.inputs.texts.windows import Window


def find_spans(
    context: str,
    windows: Sequence[Window],
    logits: Sequence[np.ndarray],
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    """The likeliest answers in one context.

    Args:
        windows: [w] of the context. logits: [w] arrays [tokens or more, 2] float32, start and end; padding may follow.
        top_k: most answers. max_answer_len: most tokens of one.
        handle_impossible_answer: whether "", with the least of the windows' scores for it, counts as an answer.
        align_to_words: an answer begins and ends with whole words.
    Returns: 1 to top_k answers with score, start, end and answer, the best first; start and end are characters of
        `context`. Equal texts, in whatever case, are one answer whose scores are added. None where no token can be one.
    """
    found: dict[str, dict[str, Any]] = {}
    null_score = 1.0
    # Aligning to words makes one of several candidates: more are looked at than are wanted.
    wanted = top_k * 2 + 10 if align_to_words else top_k
    for window, rows in zip(windows, logits, strict=True):
        start, end = probabilities(window, rows)
        null_score = min(null_score, float(start[0] * end[0]))
        for first, last, score in _best(start, end, window.text, wanted, max_answer_len):
            begin, stop = _characters(window, first, last, align_to_words)
            answer = context[begin:stop]
            known = found.setdefault(answer.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": answer})
            known["score"] += score
    answers = list(found.values())
    if handle_impossible_answer:
        answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    answers = sorted(answers, key=lambda answer: -float(answer["score"]))[:top_k]
    return [answer | {"score": round(answer["score"], 6)} for answer in answers]


def probabilities(window: Window, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How likely an answer starts and ends at each token of a window.

    Args:
        logits: [tokens or more, 2] float32, start and end.
    Returns: two arrays [tokens] float32, each with the sum 1 over the context and the null token; 0 elsewhere.
    """
    count = len(window.ids)
    eligible = np.zeros(count, bool)
    eligible[window.text.start : window.text.stop] = True
    if window.null is not None:
        eligible[window.null] = True
    masked = np.where(eligible[:, None], logits[:count], -np.inf)
    shares = np.exp(masked - masked.max(axis=0, initial=-1e30))
    shares /= np.maximum(shares.sum(axis=0), np.finfo(np.float32).tiny)
    return shares[:, 0], shares[:, 1]


def _best(
    start: np.ndarray, end: np.ndarray, text: range, wanted: int, max_answer_len: int
) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the `wanted` likeliest spans within `text`, the best first."""
    tokens = len(text)
    width = min(max_answer_len, tokens)
    if not tokens:
        return []
    begins = start[text.start : text.stop]
    ends = np.zeros(tokens + width - 1, end.dtype)
    ends[:tokens] = end[text.start : text.stop]
    # [first token, tokens behind it]: a band of the matrix of all pairs, which for long windows is far smaller.
    scores = begins[:, None] * np.lib.stride_tricks.sliding_window_view(ends, width)[:tokens]
    inside = np.arange(tokens)[:, None] + np.arange(width) < tokens
    flat = np.where(inside, scores, -1.0).ravel()
    count = min(wanted, int(inside.sum()))
    chosen = np.argpartition(-flat, count - 1)[:count] if count > 1 else np.array([flat.argmax()])
    chosen = chosen[np.lexsort((chosen, -flat[chosen]))]
    return [
        (text.start + place // width, text.start + place // width + place % width, float(flat[place]))
        for place in chosen.tolist()
    ]


def _characters(window: Window, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """The characters from token `first` to token `last`, of their whole words where both are in one."""
    if align_to_words and window.words[first] is not None and window.words[last] is not None:
        while first > window.text.start and window.words[first - 1] == window.words[first]:
            first -= 1
        while last + 1 < window.text.stop and window.words[last + 1] == window.words[last]:
            last += 1
    return window.offsets[first][0], window.offsets[last][1]
