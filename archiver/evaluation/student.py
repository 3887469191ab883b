"""Student's distribution, for intervals of means."""

from __future__ import annotations

from scipy import stats


def student_t(freedom: int, confidence: float) -> float:
    """The t for which |T| ≤ t has a given probability under Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: 0 < confidence < 1.
    Returns: t > 0.
    """
    return float(stats.t.ppf((1 + confidence) / 2, freedom))
