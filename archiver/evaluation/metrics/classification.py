"""Metrics of a classifier: its logits against the labels and the original's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from archiver.evaluation.rounding import rounded
from handlers.tasks.text.classification import sigmoid, softmax


def classification_metrics(
    logits: np.ndarray, original: np.ndarray, labels: Sequence[Any], *, multi_label: bool
) -> dict[str, float]:
    """agreement (share of inputs with the original's labels) and, where there are labels, accuracy, f1, cross_entropy.

    Multi-label: accuracy is the share of inputs whose whole set is right at 0.5, f1 the mean over labels, cross_entropy
    the mean binary one. f1 is macro: labels that neither occur nor are predicted count for nothing.

    Args:
        logits, original: [n, classes]. labels: [n] ids, tuples of ids (multi-label), or None where one is not known.
    """
    predicted, before = _decide(logits, multi_label), _decide(original, multi_label)
    metrics = {"agreement": float((predicted == before).all(axis=1).mean())}
    if any(label is None for label in labels):
        return rounded(metrics)
    truth = np.zeros(logits.shape, bool)
    for row, label in enumerate(labels):
        truth[row, list(label if isinstance(label, tuple) else (int(label),))] = True
    metrics["accuracy"] = float((predicted == truth).all(axis=1).mean())
    hits, calls, wanted = (predicted & truth).sum(0), predicted.sum(0), truth.sum(0)
    seen = (calls + wanted) > 0
    metrics["f1"] = float(np.mean(2 * hits[seen] / (calls + wanted)[seen]))
    if multi_label:
        p = np.clip(sigmoid(logits.astype(np.float64)), 1e-12, 1 - 1e-12)
        metrics["cross_entropy"] = float(-np.where(truth, np.log(p), np.log(1 - p)).mean())
    else:
        p = softmax(logits.astype(np.float64))
        metrics["cross_entropy"] = float(-np.log(np.maximum(p[truth], 1e-12)).mean())
    return rounded(metrics)


def _decide(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """[n, labels] bool: the labels the model gives each input."""
    best = np.arange(logits.shape[1]) == logits.argmax(axis=1)[:, None]
    decided: np.ndarray = logits > 0 if multi_label else best
    return decided
