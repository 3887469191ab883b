"""One search for the strongest compression that still passes: of sparsity, of energy, of bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def bisect(
    good: T, bad: T, between: Callable[[T, T], T | None], passes: Callable[[T], bool], trials: int | None = None
) -> tuple[T, T]:
    """Narrow the range between a value that passes and one that does not.

    Args:
        good: a value that is known (or taken) to pass.
        bad: one that is known (or taken) not to.
        between: (good, bad) → the value to try next, None when they are near enough.
        passes: whether a value passes; it is asked once for each.
        trials: most values that are tried; None: until `between` ends it.
    Returns: (good, bad) at the end.
    """
    while trials is None or trials > 0:
        tried = between(good, bad)
        if tried is None:
            break
        good, bad = (tried, bad) if passes(tried) else (good, tried)
        trials = None if trials is None else trials - 1
    return good, bad
