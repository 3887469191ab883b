"""Metrics of ranked lists: nDCG@k, MRR@k and hit rate@k against labels; the same order, against the original's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from archiver.evaluation.rounding import rounded

K = 10


def ranking_metrics(
    scores: Sequence[np.ndarray], original: Sequence[np.ndarray], labels: Sequence[np.ndarray | None]
) -> dict[str, float]:
    """Means over queries; what cannot be measured is left out.

    Args:
        scores, original: one array [texts] a query, of the model as it is now and of the original.
        labels: [texts] relevance from 0, one array a query; None where a query has none.
    Returns: agreement where some query has two texts that the original tells apart; ndcg@10, mrr@10, hit@10 where every
        query has labels, over those queries that have a relevant text.
    """
    agreed = [same_order(now, before) for now, before in zip(scores, original, strict=True)]
    known = [share for share in agreed if share is not None]
    metrics = {"agreement": float(np.mean(known))} if known else {}
    judged = [
        (found, truth)
        for found, truth in zip(scores, labels, strict=True)
        if truth is not None and (np.asarray(truth) > 0).any()
    ]
    if judged and all(truth is not None for truth in labels):
        for name, measure in (("ndcg", ndcg), ("mrr", reciprocal_rank), ("hit", hit)):
            metrics[f"{name}@{K}"] = float(np.mean([measure(found, truth, K) for found, truth in judged]))
    return rounded(metrics)


def ndcg(scores: np.ndarray, labels: np.ndarray, k: int = K) -> float:
    """Normalized discounted cumulative gain: Σ label / log2(rank + 1) over the first k, as a share of the best possible.

    Args:
        scores: [texts], higher is better; of equal scores the less relevant text stands first, so that a model which
            tells nothing apart gains nothing by it.
        labels: [texts] from 0, some above.
        k: ranks that count, from 1.
    Source: Järvelin & Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques; gains are the labels
        themselves, as in trec_eval and BEIR.
    """
    discounts = 1 / np.log2(np.arange(2, min(k, len(labels)) + 2))
    gained = float((ranked(scores, labels)[:k] * discounts).sum())
    best = float((np.sort(np.asarray(labels, np.float64))[::-1][:k] * discounts).sum())
    return gained / best


def reciprocal_rank(scores: np.ndarray, labels: np.ndarray, k: int = K) -> float:
    """1 / rank of the first relevant text; 0 where none is among the first k. Arguments as `ndcg` has them."""
    relevant = np.flatnonzero(ranked(scores, labels)[:k] > 0)
    return 1 / (1 + int(relevant[0])) if len(relevant) else 0.0


def hit(scores: np.ndarray, labels: np.ndarray, k: int = K) -> float:
    """1 where a relevant text is among the first k, else 0. Arguments as `ndcg` has them."""
    return float((ranked(scores, labels)[:k] > 0).any())


def ranked(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels in the order of falling scores, [texts] float64; of equal scores the lowest label first."""
    truth = np.asarray(labels, np.float64)
    return truth[np.lexsort((truth, -np.asarray(scores, np.float64)))]


def same_order(scores: np.ndarray, original: np.ndarray) -> float | None:
    """Share of the pairs that the original tells apart which stand in its order; a pair made equal does not.

    Args:
        scores, original: [texts].
    Returns: the share, or None where the original tells no two apart.
    """
    now, before = (np.sign(np.subtract.outer(values, values)) for values in map(np.asarray, (scores, original)))
    told = np.triu(before != 0, 1)
    return float((now == before)[told].mean()) if told.any() else None


def top_agreement(logits: np.ndarray, original: np.ndarray) -> float:
    """Share of rows whose largest number stands at the same place.

    Args:
        logits, original: [n, words], n from 1.
    """
    return float((logits.argmax(axis=-1) == original.argmax(axis=-1)).mean())
