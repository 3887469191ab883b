"""The mean ratio of paired measurements and how sure it is: Student's t on the logarithms of the ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """ratio: geometric mean; low, high: the bounds that hold it with `confidence`; half_width: relative, the larger of
    ratio/low - 1 and high/ratio - 1 (they are equal on the log scale)."""

    ratio: float
    low: float
    high: float
    half_width: float
    pairs: int
    confidence: float


def ratio_interval(ratios: Sequence[float], confidence: float = 0.95) -> Interval:
    """The interval of the true ratio, from ratios of independent pairs.

    ratios: positive, at least two; confidence: 0 < confidence < 1
    With m = mean(log r), s = standard deviation(log r) over n pairs: exp(m ± t(n - 1, confidence) · s / √n).
    raises ValueError for fewer than two ratios, or one that is not positive
    """
    if len(ratios) < 2 or min(ratios) <= 0:
        raise ValueError(f"an interval needs at least two positive ratios, got {list(ratios)}")
    logs = [math.log(ratio) for ratio in ratios]
    center = fmean(logs)
    reach = student_t(len(logs) - 1, confidence) * stdev(logs) / math.sqrt(len(logs))
    # So noisy a set that its bound overflows is told as an infinite one.
    half_width = math.expm1(reach) if reach < 700 else math.inf
    bound = 1 + half_width
    ratio = math.exp(center)
    return Interval(ratio, ratio / bound, ratio * bound, half_width, len(logs), confidence)


def student_t(freedom: int, confidence: float) -> float:
    """The t for which |T| ≤ t has probability `confidence`; T: Student's t with integer degrees of freedom."""
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if student_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_probability(t: float, freedom: int) -> float:
    """P(|T| ≤ t). The finite series for integer degrees of freedom: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    odd = freedom % 2
    term = cosine if odd else 1.0
    series = term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        series += term
    return 2 / math.pi * (angle + sine * series) if odd else sine * series
