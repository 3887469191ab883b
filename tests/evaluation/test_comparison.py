"""How sure a comparison over windows is, by cases done by hand, and when a growing sample is large enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archiver.evaluation.comparison import (
    Comparison,
    Interval,
    changes,
    confidence_of_a_look,
    decided,
    looks_of,
    spread_order,
)
from archiver.evaluation.metrics.perplexity import Predictions
from archiver.spec import GateSpec

T2 = 4.302653  # Student's t of 2 degrees of freedom, 95 %


def predictions(nll: list[float], best: list[list[int]] | None = None) -> Predictions:
    return Predictions(np.array(nll), np.array(best or [[1, 1]] * len(nll)))


def test_intervals_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3, a fourth window unread: mean 0.2, standard deviation 0.1, √(1 − 3/4) of its error.

    Perplexity grows by exp(0.2 ± t · 0.1/√3 · 1/2) − 1.
    """
    found = changes(predictions([1.1, 2.2, 3.3]), predictions([1.0, 2.0, 3.0]), 4, 0.95)
    reach = T2 * 0.1 / math.sqrt(3) / 2
    perplexity = found["perplexity"]
    assert perplexity.value == pytest.approx(math.expm1(0.2))
    assert (perplexity.low, perplexity.high) == pytest.approx((math.expm1(0.2 - reach), math.expm1(0.2 + reach)))
    # Each difference is a tenth of the original's: the ratio of the means is known exactly.
    entropy = found["cross_entropy"]
    assert (entropy.value, entropy.low, entropy.high) == pytest.approx((0.1, 0.1, 0.1))
    # No token differs: the error is that of one in the 6 + 2 of Laplace's rule, √(1/8 · 7/8 / 6).
    agreement = found["agreement"]
    assert agreement.value == agreement.high == 1.0
    assert agreement.low == pytest.approx(1 - T2 * math.sqrt(1 / 8 * 7 / 8 / 6) / 2)
    whole = changes(predictions([1.1, 2.2, 3.3]), predictions([1.0, 2.0, 3.0]), 3, 0.95)["perplexity"]
    assert whole.low == whole.value == whole.high


def test_agreement_scatters_between_windows() -> None:
    """Shares 1, 1/2, 0 of 100 tokens each: mean 1/2, standard deviation 1/2, far more than the tokens' own."""
    original = predictions([1.0, 1.0, 1.0], [[0] * 100] * 3)
    found = predictions([1.0, 1.0, 1.0], [[0] * 100, [0] * 50 + [1] * 50, [1] * 100])
    agreement = changes(found, original, 10**9, 0.95)["agreement"]
    assert agreement.value == 0.5
    assert agreement.low == pytest.approx(0.5 - T2 * 0.5 / math.sqrt(3), abs=1e-5)


def found_at(low: float, high: float, agreement: tuple[float, float] = (0.9, 1.0)) -> dict[str, Interval]:
    return {
        "perplexity": Interval((low + high) / 2, low, high),
        "cross_entropy": Interval((low + high) / 2, low, high),
        "agreement": Interval(sum(agreement) / 2, *agreement),
    }


@pytest.mark.parametrize(
    ("gates", "low", "high", "sure"),
    [
        ([GateSpec(max_increase={"perplexity": 0.02})], 0.001, 0.019, True),
        ([GateSpec(max_increase={"perplexity": 0.02})], 0.001, 0.021, False),
        ([GateSpec(max_increase={"perplexity": 0.02})], 0.021, 0.3, True),
        ([GateSpec(max_increase={"cross_entropy": 0.0})], 0.0, 0.0, True),
        # Agreement is between 0.9 and 1: a drop of up to 0.1.
        ([GateSpec(max_drop={"agreement": 0.1})], -1.0, 1.0, True),
        ([GateSpec(max_drop={"agreement": 0.05})], -1.0, 1.0, False),
        ([GateSpec(min={"agreement": 0.89})], -1.0, 1.0, True),
        ([GateSpec(min={"agreement": 0.95})], -1.0, 1.0, False),
        # Two gates: both must be kept for sure, one missed for sure is enough.
        ([GateSpec(min={"agreement": 0.5}), GateSpec(max_increase={"perplexity": 0.02})], 0.01, 0.03, False),
        ([GateSpec(min={"agreement": 0.95}), GateSpec(max_increase={"perplexity": 0.02})], 0.03, 0.04, True),
        # Nothing bounded: half the width of perplexity's interval, at most a thousandth.
        ([], 0.5, 0.5099, True),
        ([GateSpec(max_size_mb=1.0)], 0.5, 0.5101, False),
    ],
)
def test_when_the_verdict_is_sure(gates, low, high, sure) -> None:
    assert decided(gates, found_at(low, high)) is sure


def test_looks() -> None:
    assert looks_of(200, 20) == [20, 40, 80, 160, 200]
    assert looks_of(20, 20) == [20]
    assert looks_of(7, 20) == [7]
    assert confidence_of_a_look(5) == pytest.approx(1 - 0.05 / 4)
    assert confidence_of_a_look(1) == confidence_of_a_look(2) == pytest.approx(0.95)


def test_every_beginning_of_the_order_is_spread() -> None:
    assert spread_order(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert spread_order(5).tolist() == [0, 4, 2, 1, 3]
    assert spread_order(1).tolist() == [0]
    order = spread_order(200)
    assert sorted(order) == list(range(200))
    for count in (20, 40, 80):
        gaps = np.diff(np.sort(order[:count]))
        assert gaps.max() <= 2 * 200 / count, count


def test_the_report_of_intervals() -> None:
    assert Comparison({}, {}, {}).as_dict() == {}
    told = Comparison({}, {}, {}, found_at(0.0012345678, 0.002)).as_dict()
    assert told["perplexity"] == [0.001235, 0.002] and told["confidence"] == 0.95
