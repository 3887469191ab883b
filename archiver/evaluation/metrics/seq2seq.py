"""How good texts are that were made of texts: chrF and ROUGE-L against targets, agreement with the original's own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from archiver.errors import DataError

NEEDED = ("sacrebleu", "rouge_score")


def seq2seq_metrics(texts: Sequence[str], original: Sequence[str], targets: Sequence[str | None]) -> dict[str, float]:
    """The metrics of one model's texts.

    Args:
        texts: [n] of the model as it is now. original: [n], the original's. targets: [n] of the data; None: no target.
    Returns: agreement, the share of texts that are the original's; where every example has a target, chrf (0 … 1, the
        corpus'), rougeL (the mean F-measure) and exact_match.
    Raises: DataError where a package that measures is missing.
    Source: Popović 2015, chrF; Lin 2004, ROUGE. As sacrebleu and rouge-score compute them.
    """
    agreement = sum(a == b for a, b in zip(texts, original, strict=True)) / len(texts)
    wanted = [target for target in targets if target is not None]
    if len(wanted) < len(texts):
        return {"agreement": agreement}
    sacrebleu, rouge = _package("sacrebleu"), _package("rouge_score.rouge_scorer")
    scorer = rouge.RougeScorer(["rougeL"])
    scores = [scorer.score(target, text)["rougeL"].fmeasure for target, text in zip(wanted, texts, strict=True)]
    return {
        "chrf": float(sacrebleu.corpus_chrf(list(texts), [wanted]).score) / 100,
        "rougeL": sum(scores) / len(scores),
        "exact_match": sum(a.strip() == b.strip() for a, b in zip(texts, wanted, strict=True)) / len(texts),
        "agreement": agreement,
    }


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise DataError(
            f"the data has targets, and {package}, which measures against them, is not installed: "
            f"run `pip install {package}`"
        ) from error
