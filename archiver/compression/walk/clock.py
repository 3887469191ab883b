"""How far a walk is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from archiver.progress import duration


class Clock:
    """Says one line for each group of modules that is done.

    Args:
        method: what it is said of. total: modules in all. say: prints a line.
    """

    def __init__(self, method: str, total: int, say: Callable[[str], None]) -> None:
        self._method, self._total, self._say = method, total, say
        self._done = self._restored = 0
        self._last = ""
        self._started = time.perf_counter()

    def skip(self, group: Sequence[str]) -> None:
        """A group that an interrupted walk has done already."""
        self._done += len(group)
        self._restored = self._done
        self._last = group[-1]
        self._started = time.perf_counter()

    def resumed(self) -> None:
        """Say, once, where an interrupted walk goes on; nothing for one that begins."""
        if self._restored and self._restored == self._done:
            self._say(
                f"    {self._method}: goes on behind {self._last}, {self._restored} of {self._total} modules"
            )  # fmt: skip

    def tick(self, group: Sequence[str]) -> None:
        """A group that has just been done."""
        self._done += len(group)
        left = (time.perf_counter() - self._started) / (self._done - self._restored) * (self._total - self._done)
        still = f", about {duration(left)} left" if self._done < self._total and left >= 1 else ""
        line = f"{group[-1]} and what is beside it, {self._done} of {self._total} modules{still}"
        self._say(f"    {self._method}: {line}")
