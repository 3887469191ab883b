"""Progress of a long command: a line per step, with how long it took."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Steps on `stream`: one line each when done, and on a terminal also while it runs. seconds: time by step."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times what happens inside under `name` (added up when the name comes again)."""
        terminal = not self._quiet and self._stream.isatty()
        if terminal:
            self._stream.write(f"  {name} …")
            self._stream.flush()
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            if terminal:
                self._stream.write("\n")
            raise
        took = time.perf_counter() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 2)
        back = "\r" if terminal else ""
        self.say(f"{back}  {name:<48}{took:7.1f} s")

    def say(self, line: str) -> None:
        """One line, at once."""
        if not self._quiet:
            self._stream.write(line + "\n")
            self._stream.flush()
