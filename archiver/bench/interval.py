"""The mean ratio of paired measurements and how sure it is: Student's t on the logarithms of the ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from archiver.evaluation.student import student_t


@dataclass(frozen=True)
class Interval:
    """A mean ratio and the range in which the true one lies.

    Args:
        ratio: geometric mean.
        low, high: the bounds that hold the true ratio with `confidence`.
        half_width: high/ratio − 1, which is ratio/low − 1 too.
        pairs: how many ratios there were.
        confidence: 0 < confidence < 1.
    """

    ratio: float
    low: float
    high: float
    half_width: float
    pairs: int
    confidence: float


def ratio_interval(ratios: Sequence[float], confidence: float = 0.95) -> Interval:
    """The interval of the true ratio, from ratios of independent pairs.

    With m = mean(log r), s = standard deviation(log r) over n pairs: exp(m ± t(n − 1, confidence)·s/√n).

    Args:
        ratios: positive, at least two.
        confidence: 0 < confidence < 1.
    Returns: the interval; its bounds are 0 and infinite where the ratios scatter too much for a number.
    Raises: ValueError for fewer than two ratios, or one that is not positive.
    """
    if len(ratios) < 2 or min(ratios) <= 0:
        raise ValueError(f"an interval needs at least two positive ratios, got {list(ratios)}")
    logs = [math.log(ratio) for ratio in ratios]
    center = fmean(logs)
    reach = student_t(len(logs) - 1, confidence) * stdev(logs) / math.sqrt(len(logs))
    # exp of more than about 709 overflows.
    half_width = math.expm1(reach) if reach < 700 else math.inf
    bound = 1 + half_width
    ratio = math.exp(center)
    return Interval(ratio, ratio / bound, ratio * bound, half_width, len(logs), confidence)
