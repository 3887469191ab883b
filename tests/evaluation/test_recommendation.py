"""Ranks, hit rate and nDCG by hand, and the two simple rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archiver.evaluation.metrics.recommendation import (
    markov_scores,
    popularity_scores,
    rank_in,
    ranking_metrics,
    ranks_of,
)


def test_metrics_by_hand():
    """Ranks 0 and 2 are hits with gains 1 and 1/2; rank 10 is the eleventh place."""
    assert ranking_metrics([0, 2, 10, 500]) == {"hit@10": 0.5, "ndcg@10": pytest.approx((1 + 0.5) / 4)}
    assert ranking_metrics([9]) == {"hit@10": 1.0, "ndcg@10": pytest.approx(1 / math.log2(11), abs=1e-6)}


def test_equal_scores_rank_by_their_place_and_seen_items_can_be_left_out():
    scores = np.array([3.0, 1.0, 3.0, 2.0])
    assert ranks_of([scores] * 4, [0, 1, 2, 3]) == [0, 3, 1, 2]
    assert ranks_of([scores], [3], [[0, 2, 3]]) == [0]
    assert scores.tolist() == [3.0, 1.0, 3.0, 2.0]


def test_popularity_and_markov_chain_by_hand():
    histories = [[0, 1, 2], [0, 1], [1, 2], [3]]
    assert popularity_scores(histories, 5).tolist() == [2, 3, 2, 1, 0]
    after_one, after_three = markov_scores(histories, 5, [1, 3])
    assert after_one.argmax() == 2 and int(after_one[2]) == 2
    assert after_three.argmax() == 1 and after_three.max() < 1


def test_a_target_that_is_none_of_the_best_is_behind_them():
    best = np.array([7.0, 3.0, 5.0])  # of three items in all
    assert [rank_in(best, target) for target in (7, 5, 4)] == [0, 2, 10]
    assert rank_in(np.arange(100.0), 150) == 100
