"""How many tokens of prompts a step may read beside running texts, by how long steps took so far."""

from collections import deque
from statistics import median

LEAST = 8  # tokens of a prompt in one step, whatever runs
SHARE = 0.6  # of a step without prompts that one prompt may take on top of it
_UNEVEN = 4  # pieces are multiples of it: a runtime prepares itself for each size that it meets anew
_KEPT = 7  # steps that are remembered of a kind


class Pace:
    """Measures steps. A single prompt beside a batch makes a step at most 1 + SHARE times as long.

    Args:
        most: tokens of prompts in one step where nothing runs beside them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: dict[int, deque[float]] = {}  # of steps that read nothing, by rows
        self._token: deque[float] = deque(maxlen=_KEPT)  # seconds for one more token of a prompt
        self._guess: deque[float] = deque(maxlen=_KEPT)  # seconds for one more guessed token

    def took(self, rows: int, guessed: int, read: int, seconds: float) -> None:
        """Remember a step. rows: texts that ran in it. guessed: tokens behind theirs. read: tokens of prompts."""
        if not read and not guessed:
            self._steps.setdefault(rows, deque(maxlen=_KEPT)).append(seconds)
        elif not read:
            self._guess.append(max(0.0, seconds - (self.step(rows) or 0.0)) / guessed)
        elif read >= LEAST and not guessed:
            self._token.append(max(0.0, seconds - (self.step(rows) or 0.0)) / read)

    def step(self, rows: int) -> float | None:
        """Seconds of a step that reads nothing, None while unknown; of the nearest number of rows that there was."""
        if not rows or not self._steps:
            return None
        return median(self._steps[min(self._steps, key=lambda known: abs(known - rows))])

    def piece(self, rows: int, waiting: int) -> int:
        """Tokens of prompts to read in a step.

        Where several prompts wait and few texts run, the texts stand back for as much more.

        Args:
            rows: texts that run. waiting: prompts that are not read yet.
        """
        if not rows:
            return self._most
        step, token = self.step(rows), median(self._token) if self._token else None
        fits = step / token if step and token else float(rows)
        wanted = int(SHARE * max(1.0, 4 * (waiting - 1) / rows) * fits)
        return max(LEAST, min(self._most, wanted // _UNEVEN * _UNEVEN))

    def price(self, rows: int) -> float | None:
        """What one guess costs, as a share of what a token of a running text costs without; None while unknown."""
        step, more = self.step(rows), self._guess or self._token
        return median(more) * rows / step if step and more else None
