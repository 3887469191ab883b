"""The best of many scores, exactly: one pass for the largest of each block, a sort of the few blocks that can matter."""

from collections.abc import Collection

import numpy as np

BLOCK = 256


def best(scores: np.ndarray, k: int, left_out: Collection[int] = ()) -> np.ndarray:
    """The positions of the k largest scores, the largest first; of equal ones the lower position first.

    The k-th largest of the blocks' maxima is no larger than the k-th largest score, since k blocks have a score of at least
    that. So only blocks that reach it can hold one of the k best.

    Args:
        scores: [n] float32. k: at least 1; more than there are gives all of them.
        left_out: positions that are not wanted.
    Returns: [min(k, n less those left out)] int64.
    Raises: ArithmeticError where a score is not a number, or infinitely large.
    """
    if left_out:
        scores = scores.copy()
        scores[np.fromiter(left_out, np.int64, len(left_out))] = -np.inf
    whole = len(scores) // BLOCK * BLOCK
    peaks = scores[:whole].reshape(-1, BLOCK).max(axis=1)
    if whole < len(scores):
        peaks = np.append(peaks, scores[whole:].max())
    if not (peaks < np.inf).all():
        raise ArithmeticError("the model's answer is not finite")
    least = np.partition(peaks, -k)[-k] if k < len(peaks) else -np.inf
    places = (np.flatnonzero(peaks >= least)[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    places = places[places < len(scores)]
    places = places[scores[places] > -np.inf]
    found: np.ndarray = places[np.argsort(-scores[places], kind="stable")[:k]]
    return found


def rank_of(scores: np.ndarray, position: int) -> int:
    """How many positions `best` gives before `position`.

    Args:
        scores: [n]. position: 0 … n − 1.
    """
    score = scores[position]
    return int(np.count_nonzero(scores > score) + np.count_nonzero(scores[:position] == score))
