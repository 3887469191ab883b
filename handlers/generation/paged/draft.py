"""A smaller model of the same tokens that guesses what a text's own model will write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from handlers.generation.paged.pages import PagedModel, Pages, Piece

PIECE = 256  # tokens of a text that it reads at once, before it guesses


@dataclass
class _Read:
    """ids: those with keys and values, in `blocks`. sure: how many of them are the text's own and no guesses."""

    ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    sure: int = 0


class Draft:
    """See `handlers.generation.paged.guesses.Guesser`. A text for which its cache has no room is not guessed.

    Args:
        model: the smaller one. blocks: of its cache. size: tokens of one.
    """

    def __init__(self, model: PagedModel, blocks: int, size: int) -> None:
        self._model, self._pages, self._size = model, Pages(blocks, size), size
        self._known: dict[int, _Read] = {}

    def guess(self, texts: Mapping[int, Sequence[int]], counts: Mapping[int, int]) -> dict[int, list[int]]:
        """See `Guesser`."""
        found: dict[int, list[int]] = {key: [] for key in texts}
        asked = [key for key in texts if counts[key] and self._go_back(key, texts[key], counts[key])]
        while asked:
            parts = {}
            for key in asked:
                done = len(self._known[key].ids)
                behind = max(0, done - len(texts[key]))
                parts[key] = [*texts[key][done : done + PIECE], *found[key][behind:]][:PIECE]
            pieces = [Piece(parts[key], len(self._known[key].ids), self._known[key].blocks) for key in asked]
            likeliest = self._model.run(pieces).argmax(-1).tolist()
            for key, token in zip(list(asked), likeliest, strict=True):
                read = self._known[key]
                read.ids += parts[key]
                if len(read.ids) == len(texts[key]) + len(found[key]):
                    found[key].append(token)
                    read.sure = len(texts[key])
                else:
                    read.sure = len(read.ids)  # the rest of a long text is read in the steps that come
                    asked.remove(key)
            asked = [key for key in asked if len(found[key]) < counts[key]]
        return found

    def forget(self, key: int) -> None:
        """See `Guesser`."""
        read = self._known.pop(key, None)
        if read is not None:
            self._pages.give_back(read.blocks)

    def _go_back(self, key: int, ids: Sequence[int], count: int) -> bool:
        """Take back what was guessed wrong; whether there is room for the text and its guesses."""
        read = self._known.setdefault(key, _Read())
        agreed = read.sure
        while agreed < min(len(read.ids), len(ids) - 1) and read.ids[agreed] == ids[agreed]:
            agreed += 1
        del read.ids[min(agreed, len(ids) - 1) :]
        read.sure = len(read.ids)
        missing = -(-(len(ids) + count) // self._size) - len(read.blocks)
        if missing > self._pages.free:
            return False
        read.blocks += self._pages.take(max(0, missing))
        return True
