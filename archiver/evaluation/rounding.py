"""How many digits metrics have."""

from __future__ import annotations

from collections.abc import Mapping

DECIMALS = 6


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics to six digits: what is compared, and stored."""
    return {name: round(value, DECIMALS) for name, value in metrics.items()}
