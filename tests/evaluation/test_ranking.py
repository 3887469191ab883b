"""Metrics of ranked lists, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archiver.evaluation.metrics.ranking import hit, ndcg, ranking_metrics, reciprocal_rank, same_order, top_agreement


def test_ndcg_by_hand() -> None:
    """Order b, c, a with gains 0, 3, 2: 3/log2(3) + 2/log2(4); at best 3/log2(2) + 2/log2(3)."""
    scores, labels = np.array([0.1, 0.9, 0.5]), np.array([2, 0, 3])
    gained = 3 / math.log2(3) + 2 / 2
    best = 3 / 1 + 2 / math.log2(3)
    assert ndcg(scores, labels) == pytest.approx(gained / best)
    assert ndcg(scores, labels, k=2) == pytest.approx(3 / math.log2(3) / best)
    assert ndcg(scores, labels, k=1) == 0.0
    assert ndcg(np.array([2, 1, 3]), labels) == pytest.approx(1.0)


def test_the_first_relevant_text_counts() -> None:
    scores, labels = np.array([5.0, 4.0, 3.0, 2.0]), np.array([0, 0, 1, 1])
    assert reciprocal_rank(scores, labels) == pytest.approx(1 / 3)
    assert reciprocal_rank(scores, labels, k=2) == 0.0
    assert (hit(scores, labels, k=2), hit(scores, labels, k=3)) == (0.0, 1.0)


def test_equal_scores_are_no_merit() -> None:
    """All equal: the relevant text counts as the last one, wherever it stands in the file."""
    equal = np.zeros(4)
    for place in range(4):
        labels = np.eye(4)[place]
        assert reciprocal_rank(equal, labels) == pytest.approx(1 / 4)
        assert ndcg(equal, labels) == pytest.approx(1 / math.log2(5))


def test_order_against_the_original_by_hand() -> None:
    """Pairs of 3, 2, 2, 1: five of six are told apart; the second list turns one of them and makes one equal."""
    assert same_order(np.array([3, 2, 2, 1]), np.array([3, 2, 2, 1])) == 1.0
    assert same_order(np.array([2, 3, 1, 1]), np.array([3, 2, 2, 1])) == pytest.approx(3 / 5)
    assert same_order(np.array([1.0, 2.0]), np.array([1.0, 1.0])) is None


def test_means_over_queries() -> None:
    scores = [np.array([0.9, 0.1]), np.array([0.2, 0.8])]
    metrics = ranking_metrics(
        scores, [np.array([1.0, 0.0]), np.array([1.0, 0.0])], [np.array([1, 0]), np.array([1, 0])]
    )
    assert metrics == {
        "agreement": 0.5,
        "ndcg@10": pytest.approx((1 + 1 / math.log2(3)) / 2, abs=1e-6),
        "mrr@10": 0.75,
        "hit@10": 1.0,
    }
    assert set(ranking_metrics(scores, scores, [np.array([1, 0]), None])) == {"agreement"}
    assert set(ranking_metrics(scores, scores, [np.zeros(2), np.zeros(2)])) == {"agreement"}
    assert ranking_metrics([np.array([1.0])], [np.array([1.0])], [None]) == {}


def test_top_agreement_by_hand() -> None:
    logits = np.array([[0, 2, 1], [3, 0, 0], [0, 0, 1]])
    assert top_agreement(logits, np.array([[0, 9, 1], [0, 1, 0], [0, 0, 7]])) == pytest.approx(2 / 3)
