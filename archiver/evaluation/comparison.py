"""A model's metrics beside the original's on the same inputs, and how sure they are where those are a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.evaluation.gate import SLACK
from archiver.evaluation.student import student_t
from archiver.spec import GateSpec

if TYPE_CHECKING:
    from archiver.evaluation.metrics.perplexity import Predictions

CONFIDENCE = 0.95  # that no look at a growing sample was deceived
NARROW = 0.005  # half-width of perplexity's relative change that is sure enough where nothing is bounded


@dataclass(frozen=True)
class Interval:
    """Where a value lies: low ≤ value ≤ high with some confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What was measured of a model.

    Args:
        metrics: of the model. original: of the original, on the same inputs.
        extent: how much they were measured on, for the report's `measured_on`.
        intervals: of each metric's change, as `changes` gives them; empty where the inputs are no sample.
    """

    metrics: dict[str, float]
    original: dict[str, float]
    extent: dict[str, int]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The intervals for the report: metric → [low, high], and the confidence; {} where there are none."""
        if not self.intervals:
            return {}
        ends = {name: [round(one.low, 6), round(one.high, 6)] for name, one in self.intervals.items()}
        return {"confidence": CONFIDENCE, **ends}


def changes(found: Predictions, original: Predictions, population: int, confidence: float) -> dict[str, Interval]:
    """How each metric of a language model over all windows compares with the original's, from those that both have read.

    With d the windows' differences in mean negative log-likelihood: perplexity's relative change is exp(mean d) − 1, and
    Student's interval of mean d gives its ends. Cross-entropy's is a ratio of means, its error by the delta method.
    Agreement is a mean of shares, whose error is never taken for less than that of one more token that differs. All
    errors are those of a sample of n windows of N, drawn without putting back: √(1 − n/N) of what they were else.

    Args:
        found, original: of the same windows, at least two.
        population: how many windows there are.
        confidence: 0 < confidence < 1, of each interval.
    Returns: "perplexity", "cross_entropy": relative change; "agreement": the share itself.
    Source: Cochran, Sampling Techniques, 1977, § 2.6 and 6.4.
    """
    count = len(found)
    reach = student_t(count - 1, confidence) * math.sqrt((1 - count / population) / count)
    difference = found.nll - original.nll
    mean, half = float(difference.mean()), reach * float(difference.std(ddof=1))
    base = float(original.nll.mean())
    ratio = mean / base if base else 0.0
    ratio_half = reach * float((difference - ratio * original.nll).std(ddof=1)) / base if base else math.inf
    alike = (found.best == original.best).mean(axis=1)
    share, tokens = float(alike.mean()), found.best.size
    least = (tokens * (1 - share) + 1) / (tokens + 2)
    scatter = max(float(alike.std(ddof=1)), math.sqrt(least * (1 - least) * count / tokens))
    return {
        "perplexity": Interval(_grown(mean), _grown(mean - half), _grown(mean + half)),
        "cross_entropy": Interval(ratio, ratio - ratio_half, ratio + ratio_half),
        "agreement": Interval(share, share - reach * scatter, min(1.0, share + reach * scatter)),
    }


def decided(gates: Sequence[GateSpec], found: Mapping[str, Interval]) -> bool:
    """Whether more windows could change no verdict: one bound is missed for sure, or all are kept for sure.

    Without bounds: whether perplexity's change is known to NARROW.

    Args:
        gates: their `max_drop`, `max_increase` and `min` count. found: as `changes` gives them.
    """
    verdicts = [_verdict(kind, bound, found[name]) for gate in gates for kind, name, bound in _bounds(gate)]
    if not verdicts:
        change = found["perplexity"]
        return (change.high - change.low) / 2 <= NARROW
    return False in verdicts or None not in verdicts


def _bounds(gate: GateSpec) -> list[tuple[str, str, float]]:
    kinds = (("max_drop", gate.max_drop), ("max_increase", gate.max_increase), ("min", gate.min))
    return [(kind, name, bound) for kind, bounds in kinds for name, bound in bounds.items()]


def _verdict(kind: str, bound: float, found: Interval) -> bool | None:
    """True: kept for sure; False: missed for sure; None: it is not sure yet."""
    if kind == "max_increase":
        low, high = found.low, found.high
    else:  # of a share, of which the original has 1
        low, high = ((1 - found.high, 1 - found.low) if kind == "max_drop" else (-found.high, -found.low))  # fmt: skip
        bound = bound if kind == "max_drop" else -bound
    if high <= bound + SLACK:
        return True
    return False if low > bound + SLACK else None


def _grown(logarithm: float) -> float:
    return math.expm1(min(logarithm, 700.0))


def looks_of(count: int, first: int) -> list[int]:
    """After how many of `count` windows a growing sample is looked at: first, twice as many, and so on, and at all."""
    found = []
    while first < count:
        found.append(first)
        first *= 2
    return [*found, count]


def confidence_of_a_look(looks: int) -> float:
    """Of each of `looks` intervals, so that all of them hold with CONFIDENCE (Bonferroni).

    The last look is at all windows: what it finds is not asked whether it is sure.
    """
    return 1 - (1 - CONFIDENCE) / max(1, looks - 1)


def spread_order(count: int) -> np.ndarray:
    """0 … count − 1 in an order of which every beginning is spread evenly: by their bits, the lowest first.

    Returns: [count] int64. Source: van der Corput 1935.
    """
    bits = max(1, (count - 1).bit_length())
    reversed_bits = [int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits)]
    return np.array([place for place in reversed_bits if place < count], np.int64)
