"""A model without weights whose tokens lie in blocks as keys and values would: it sees a wrong block, or a stale one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from handlers.generation.paged.pages import Piece

VOCABULARY = 50


def follow(ids: Sequence[int], count: int, mod: int = VOCABULARY, adapter: int = 0) -> list[int]:
    """What the model writes behind `ids`, with an adapter. mod: small, where the text shall repeat itself."""
    found = list(ids)
    for _ in range(count):
        found.append(_next([token + adapter for token in found], mod))
    return found[len(ids) :]


class Counting:
    """A `handlers.generation.paged.pages.PagedModel`. passes: what it was given."""

    def __init__(self, blocks: int, size: int = 4, mod: int = VOCABULARY) -> None:
        self._cache = np.full((blocks, size), -1)
        self._size, self._mod = size, mod
        self.passes: list[list[Piece]] = []

    def run(self, pieces: Sequence[Piece]) -> np.ndarray:
        self.passes.append(list(pieces))
        for piece in pieces:
            for place, token in enumerate(piece.ids, piece.start):
                self._cache[piece.blocks[place // self._size], place % self._size] = token + piece.adapter
        rows = []
        for piece in pieces:
            end = piece.start + len(piece.ids)
            for stop in range(end - piece.asked + 1, end + 1):
                seen = [
                    int(self._cache[piece.blocks[place // self._size], place % self._size]) for place in range(stop)
                ]
                rows.append(np.eye(VOCABULARY, dtype=np.float32)[_next(seen, self._mod)])
        return np.array(rows)


def _next(ids: Sequence[int], mod: int) -> int:
    if mod < VOCABULARY:
        return (ids[-1] + 1) % mod  # goes round
    return sum(token * place for place, token in enumerate(ids, 1)) % mod
