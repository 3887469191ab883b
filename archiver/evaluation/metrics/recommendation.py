"""How well next items are ranked among all items, and what two simple rankings reach on the same data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from archiver.evaluation.rounding import rounded
from handlers.tasks.items.ranking import rank_of

CUT = 10


def ranking_metrics(ranks: Sequence[int]) -> dict[str, float]:
    """hit@10: the share of targets among the first ten; ndcg@10: 1/log2(rank + 2) of those, else 0, as a mean.

    With one right answer the ideal DCG is 1.

    Args:
        ranks: [n] places of the targets among all items, from 0.
    Source: Järvelin & Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques.
    """
    hits = [rank for rank in ranks if rank < CUT]
    gain = sum(1 / math.log2(rank + 2) for rank in hits)
    count = max(1, len(ranks))
    return rounded({f"hit@{CUT}": len(hits) / count, f"ndcg@{CUT}": gain / count})


def ranks_of(
    scores: Iterable[np.ndarray],
    targets: Sequence[int],
    seen: Sequence[Sequence[int]] | None = None,
) -> list[int]:
    """The place of each target among all items.

    Args:
        scores: [n] rows [items]. targets: [n].
        seen: [n] items that are left out of each row's ranking; None: all items are ranked.
    """
    ranks = []
    for index, (row, target) in enumerate(zip(scores, targets, strict=True)):
        if seen is not None:
            gone = [item for item in seen[index] if item != target]
            if gone:
                row = row.copy()
                row[gone] = -np.inf
        ranks.append(rank_of(row, target))
    return ranks


def rank_in(best: np.ndarray, target: int) -> int:
    """The place of a target among the best items; where it is none of them, the place behind the last.

    Args:
        best: [≥ CUT, or all items there are] rows, the best first.
    """
    places = np.flatnonzero(best == target)
    return int(places[0]) if len(places) else max(CUT, len(best))


def popularity_scores(histories: Sequence[Sequence[int]], items: int) -> np.ndarray:
    """[items] how often each item occurs in the training histories."""
    counts = np.zeros(items, np.float64)
    for history in histories:
        np.add.at(counts, np.asarray(history, np.int64), 1)
    return counts


def markov_scores(
    histories: Sequence[Sequence[int]], items: int, last: Sequence[int]
) -> Iterator[np.ndarray]:  # fmt: skip
    """A first-order Markov chain's scores: how often each item has followed the last one; popularity where that is equal.

    Args:
        histories: training histories. items: how many there are. last: [n] the last item of each history to continue.
    Yields: [items] for each of `last`.
    """
    popular = popularity_scores(histories, items)
    popular /= 1 + popular.max(initial=0)  # below 1: it only decides among equals
    wanted = set(last)
    followers: dict[int, list[int]] = {item: [] for item in wanted}
    for history in histories:
        for before, after in zip(history[:-1], history[1:], strict=True):
            if before in wanted:
                followers[before].append(after)
    for item in last:
        yield popular + np.bincount(np.asarray(followers[item], np.int64), minlength=items)
