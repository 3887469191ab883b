"""Metrics of recognised speech: transcripts against what was said, and against the original's."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from archiver.evaluation.rounding import rounded

_WITHIN = "'’"  # belong to a word: don't


def plain_words(text: str) -> str:
    """A transcript's words as they are counted: lower case, without punctuation, one blank between them.

    Recognisers differ in capitals and punctuation, and lists of transcripts mostly have neither.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    kept = [" " if unicodedata.category(sign)[0] in "PSZC" and sign not in _WITHIN else sign for sign in text]
    return " ".join(word for part in "".join(kept).split() if (word := part.strip("'")))


def transcript_metrics(
    found: Sequence[str], reference: Sequence[str], said: Sequence[str | None]
) -> dict[str, float]:  # fmt: skip
    """How good transcripts are.

    agreement: share of recordings whose words are the original's. Where all transcripts are known also wer and cer (words
    and characters inserted, left out and replaced, as a share of those said; over all recordings together) and
    word_accuracy (1 − wer, at least 0): it can be bounded by an absolute drop where the original makes no mistake.

    Args:
        found, reference: [n] transcripts of the model as it is now and of the original. said: [n] what was said.
    """
    import jiwer

    ours, theirs = [plain_words(text) for text in found], [plain_words(text) for text in reference]
    metrics = {"agreement": sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)}
    truth = [plain_words(text) for text in said if text is not None]
    if len(truth) == len(ours):
        metrics["wer"] = jiwer.wer(truth, ours)
        metrics["cer"] = jiwer.cer(truth, ours)
        metrics["word_accuracy"] = max(0.0, 1.0 - metrics["wer"])
    return rounded(metrics)
