"""The best of many scores: what a full sort gives, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from handlers.tasks.items.ranking import BLOCK, best, rank_of


@pytest.mark.parametrize("size", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 1000, 20 * BLOCK + 7])
@pytest.mark.parametrize("k", [1, 3, 10, 400])
def test_it_is_a_full_sort(size, k):
    draw = np.random.default_rng(size * k)
    for distinct in (3, 50, 10**6):
        scores = draw.integers(-distinct, distinct, size).astype(np.float32)
        order = np.lexsort((np.arange(size), -scores))
        assert best(scores, k).tolist() == order[:k].tolist()
        assert [rank_of(scores, place) for place in order[:5].tolist()] == list(range(min(5, size)))
        gone = set(draw.integers(0, size, min(size - 1, 40)).tolist())
        assert best(scores, k, gone).tolist() == [place for place in order.tolist() if place not in gone][:k]


def test_nothing_is_left_and_nothing_is_a_number():
    assert best(np.ones(3, np.float32), 2, {0, 1, 2}).tolist() == []
    for bad in (np.nan, np.inf):
        scores = np.ones(1000, np.float32)
        scores[700] = bad
        with pytest.raises(ArithmeticError, match="not finite"):
            best(scores, 3)
