"""Progress of a long command: a line per step with how long it took, and while it runs how far it is and what is left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

# Between two lines on how far a step is: on a terminal the line is written over, elsewhere every line stays.
ON_TERMINAL, PIPED = 1.0, 10.0


class Progress:
    """Steps on `stream`: one line each when done, and lines on how far it is while it takes long.

    Attributes:
        seconds: time by step. expected: how many seconds all steps of a name will take, about, as far as somebody
            knows.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, every: float | None = None) -> None:
        """Every `every` seconds a running step says how far it is; None: ON_TERMINAL or PIPED."""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._terminal = not quiet and self._stream.isatty()
        self._every = every or (ON_TERMINAL if self._terminal else PIPED)
        self._lock = threading.Lock()
        self._shown = 0  # characters of the line that the next one writes over
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times what happens inside under `name` (added up when the name comes again)."""
        running = _Step(name, self._left(name))
        if self._terminal:
            self._over(f"  {name} …")
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(running, ended), daemon=True)
        if not self._quiet:
            watcher.start()
        token = _RUNNING.set(running)
        try:
            yield
        except BaseException:
            if self._terminal:
                self._write("\n")
            raise
        finally:
            _RUNNING.reset(token)
            ended.set()
            if not self._quiet:
                watcher.join()
        took = time.perf_counter() - running.started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 2)
        self.say(f"  {name:<48}{took:7.1f} s")

    def _left(self, name: str) -> float | None:
        """What is left of a step's time behind those of its name that are done; None where nobody knows."""
        left = self.expected.get(name, 0.0) - self.seconds.get(name, 0.0)
        return left if left > 0 else None

    def say(self, line: str) -> None:
        """One line, at once."""
        if self._quiet:
            return
        if self._terminal and self._shown:
            self._over(line)
            self._write("\n")
        else:
            self._write(line + "\n")

    def _watch(self, running: _Step, ended: threading.Event) -> None:
        """Say how far a step is, again and again, until it has ended."""
        while not ended.wait(self._every):
            line = running.line()
            if self._terminal:
                self._over(line)
            else:
                self._write(line + "\n")

    def _over(self, line: str) -> None:
        """Write a line over the one that stands there."""
        with self._lock:
            self._stream.write("\r" * bool(self._shown) + line.ljust(self._shown))
            self._stream.flush()
            self._shown = len(line)

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()
            self._shown = 0


class _Step:
    """A step that runs: when it began, and how far the innermost loop that counts is."""

    def __init__(self, name: str, expected: float | None) -> None:
        self.name, self.expected = name, expected
        self.started = time.perf_counter()
        self.count: tuple[int, int, str, float] | None = None  # done, of, what, since when

    def line(self, now: float | None = None) -> str:
        """ "  NAME: 12 of 40 windows, about 35 s left", or how long it has taken already where nothing is counted."""
        now = time.perf_counter() if now is None else now
        took = now - self.started
        said = [f"{took:.0f} s"]
        left = None if self.expected is None else max(0.0, self.expected - took)
        if self.count is not None:
            done, total, what, since = self.count
            said.append(f"{done} of {total} {what}")
            left = (now - since) / done * (total - done) if done else left
        if left:
            said.append(f"about {duration(left)} left")
        return f"  {self.name}: {', '.join(said)}"


_RUNNING: ContextVar[_Step | None] = ContextVar("step", default=None)


@contextmanager
def counted(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A loop within a step, whose count shows in the step's line; where no step runs, nothing is shown.

    Args:
        total: how many there are. what: their name in the plural.
    Returns: the function to call with how many are done.
    """
    step = _RUNNING.get()
    if step is None:
        yield _forget
        return
    outer, since = step.count, time.perf_counter()
    step.count = (0, total, what, since)

    def done(count: int) -> None:
        step.count = (count, total, what, since)

    try:
        yield done
    finally:
        step.count = outer


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: "40 s", "3 minutes", "1.5 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _forget(count: int) -> None:
    """Nobody is shown how far it is."""
