"""How many tokens of prompts a step may read beside running texts, by how long steps took so far."""

from collections import deque
from statistics import median

SHARE = 0.75  # of the running texts' time that each prompt may take on top of it
PIECE = 128  # tokens of prompts in a step beside running texts: what they wait for at once
_BURST = 3  # prompts that come together are read at once, unless so many times as many texts run
_KEPT = 7  # steps that are remembered of a kind


class Pace:
    """Measures steps, and lets prompts be read only as often as the running texts can bear.

    A step that reads makes the texts wait; what it took beyond its share is owed to them, and paid by steps that read
    nothing. So beside one prompt they run at 1 / (1 + SHARE) of their pace or faster, whatever reading costs: at the end of
    a long prompt a piece costs a multiple of what the first one did.

    Args:
        most: tokens of prompts in one step where nothing runs beside them, or many prompts wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: dict[int, deque[float]] = {}  # of steps that read nothing, by rows
        self._guess: deque[float] = deque(maxlen=_KEPT)  # seconds for one more guessed token
        self._token: deque[float] = deque(maxlen=_KEPT)  # seconds for one more token of a prompt
        self._owed = 0.0  # seconds
        self._share = SHARE

    def took(self, rows: int, guessed: int, read: int, seconds: float) -> None:
        """Remember a step. rows: texts that ran in it. guessed: tokens behind theirs. read: tokens of prompts."""
        usual = self.step(rows)
        if not read and not guessed:
            self._steps.setdefault(rows, deque(maxlen=_KEPT)).append(seconds)
        elif not read:
            self._guess.append(max(0.0, seconds - (usual or 0.0)) / guessed)
        elif not guessed:
            self._token.append(max(0.0, seconds - (usual or 0.0)) / read)
        if usual is None or not rows:
            self._owed = 0.0
        elif read:
            self._owed += seconds - usual * (1 + self._share)
        else:
            self._owed = max(0.0, self._owed - usual * self._share)

    def step(self, rows: int) -> float | None:
        """Seconds of a step that reads nothing, None while unknown; of the nearest number of rows that there was."""
        if not rows or not self._steps:
            return None
        return median(self._steps[min(self._steps, key=lambda known: abs(known - rows))])

    def piece(self, rows: int, waiting: int) -> int:
        """Tokens of prompts to read in the next step; 0 while the running texts are owed time.

        Each prompt that waits has its share; where many do, beside the texts, these stand back altogether.

        Args:
            rows: texts that run. waiting: prompts that are not read yet.
        """
        if not rows or (waiting > 1 and _BURST * waiting > rows):
            self._owed = 0.0
            return self._most
        self._share = SHARE * waiting
        if self._owed > 0 or self.step(rows) is None:  # without a step that reads nothing there is no measure
            return 0
        return min(self._most, PIECE)

    def price(self, rows: int) -> float | None:
        """What one guess costs, as a share of what a token of a running text costs without; None while unknown."""
        step, more = self.step(rows), self._guess or self._token
        return median(more) * rows / step if step and more else None
