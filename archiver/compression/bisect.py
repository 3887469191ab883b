"""One search for the strongest compression that still passes: of sparsity, of energy, of bits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
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


def remembered(passes: Callable[[float], bool], checkpoint: Path | None) -> Callable[[float], bool]:
    """`passes` whose answers are kept on disk: an interrupted search does not try again what it has tried.

    Args:
        passes: whether a value passes. checkpoint: the stage's, without suffix; None: nothing is kept.
    """
    if checkpoint is None:
        return passes
    file = checkpoint.with_name(f"{checkpoint.name}-trials.json")
    try:
        known: dict[str, bool] = {value: bool(found) for value, found in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):  # none yet, or half-written by another program
        known = {}

    def asked(value: float) -> bool:
        if repr(value) not in known:
            known[repr(value)] = passes(value)
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(known))
            os.replace(part, file)
        return known[repr(value)]

    return asked
