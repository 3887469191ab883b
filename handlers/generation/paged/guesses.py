"""Guessing the next tokens of texts, so that one step of the model can say several at once: which are right it decides.

Source: Leviathan et al. 2023, arXiv:2211.17192; guessing from the text itself: Saxena 2023, prompt lookup decoding.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

LONGEST, SHORTEST = 4, 2  # tokens at the end of a text that are looked up in it
_FIRST = 0.6  # of guesses that are thought to be right before there were any
_WEIGHT = 0.2  # of one guess in what is thought from then on
_AGAIN = 0.02  # by which a text that is not guessed gets back to the first opinion, a token


class Guesser(Protocol):
    """Where guesses come from."""

    def guess(self, texts: Mapping[int, Sequence[int]], counts: Mapping[int, int]) -> dict[int, list[int]]:
        """Tokens that may follow.

        Args:
            texts: by key, all that there is of each; a key's text only ever grows. counts: most that are wanted of each.
        """
        ...

    def forget(self, key: int) -> None:
        """This text is no longer written."""
        ...


class Hope:
    """How often the guesses about one text were right."""

    def __init__(self) -> None:
        self.right = _FIRST

    def count(self, most: int, price: float) -> int:
        """How many to guess.

        Args:
            most: allowed. price: of one guess, as a share of what a token costs without: what is less likely is left.
        """
        chance, count = self.right, 0
        while count < most and chance > price:
            chance, count = chance * self.right, count + 1
        if not count:
            self.right += _AGAIN * (_FIRST - self.right)
        return count

    def told(self, guessed: int, right: int) -> None:
        """Learn how many of the first guesses were right, of those that were made."""
        tried = min(guessed, right + 1)  # behind the first wrong one nothing is known
        if tried:
            self.right += (1 - (1 - _WEIGHT) ** tried) * (right / tried - self.right)


class Lookup:
    """Guesses what followed the last time that a text's end stood in it."""

    def __init__(self) -> None:
        self._known: dict[int, _Runs] = {}

    def guess(self, texts: Mapping[int, Sequence[int]], counts: Mapping[int, int]) -> dict[int, list[int]]:
        """See `Guesser`."""
        return {key: self._known.setdefault(key, _Runs()).guess(ids, counts[key]) for key, ids in texts.items()}

    def forget(self, key: int) -> None:
        """See `Guesser`."""
        self._known.pop(key, None)


class _Runs:
    """One text, and the last place behind each of its runs of tokens at which something follows."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._behind: list[dict[tuple[int, ...], int]] = [{} for _ in range(SHORTEST, LONGEST + 1)]

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        for end in range(len(self._ids), len(ids)):
            for size, places in enumerate(self._behind, SHORTEST):
                if end >= size:
                    places[tuple(ids[end - size : end])] = end
        self._ids += ids[len(self._ids) :]
        for size, places in reversed(list(enumerate(self._behind, SHORTEST))):
            place = places.get(tuple(self._ids[-size:]))
            if place is not None:
                return self._ids[place : place + count]
        return []
