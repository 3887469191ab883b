"""The blocks of a KV cache: whose they are, and which still hold the beginning of a text that was here before."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# A single token is computed by other operations than several. So that a text does not hang on how its prompt is cut and on
# what is there of it already, no piece of a prompt is shorter.
LEAST_READ = 2
_START = 0  # the content before a text's first block; of one with an adapter, minus its number


@dataclass(frozen=True)
class Piece:
    """Tokens of one text to run. start: how many tokens stand before them. blocks: the text's, in order.

    asked: of how many of the last tokens the logits are wanted. apart: compute each token by the very operations that it
        would get in a pass of its own, to the last bit; else they are taken together, which is faster for many.
    adapter: the number of the text's LoRA adapter, 0 for none.
    """

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    asked: int = 1
    apart: bool = False
    adapter: int = 0


class PagedModel(Protocol):
    """A decoder whose keys and values lie in blocks."""

    def run(self, pieces: Sequence[Piece]) -> np.ndarray:
        """The logits that were asked for, piece by piece: [asked in all, vocabulary] float32, valid until the next pass."""
        ...


class Pages:
    """Hands out blocks of a cache and knows full ones by what they hold, so that an equal beginning is computed once.

    Args:
        count: blocks there are. size: tokens that one holds.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._blank = list(reversed(range(count)))  # the last given back is taken first: less memory is touched
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody's, of known content, the longest unused first
        self._users = [0] * count
        # A content is a number of its own: what stands before the block, and the block's tokens, make it.
        self._content: dict[int, int] = {}
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._found: dict[tuple[int, tuple[int, ...]], int] = {}
        self._next = _START + 1

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._blank) + len(self._idle)

    def take(self, count: int) -> list[int]:
        """So many blocks, at most `free`, for one user."""
        assert count <= self.free
        blocks = []
        for _ in range(count):
            block = self._blank.pop() if self._blank else self._forget(self._idle.popitem(last=False)[0])
            self._users[block] = 1
            blocks.append(block)
        return blocks

    def beginning(self, ids: Sequence[int], adapter: int = 0) -> list[int]:
        """Blocks that hold the first tokens of `ids`, for one more user; at least LEAST_READ tokens stay to be read.

        Args:
            adapter: the text's. Texts of different ones share no block: their keys and values are others.
        """
        blocks: list[int] = []
        before = _START - adapter
        for start in range(0, (len(ids) - LEAST_READ) // self.size * self.size, self.size):
            block = self._found.get((before, tuple(ids[start : start + self.size])))
            if block is None:
                break
            before = self._content[block]
            self._idle.pop(block, None)
            self._users[block] += 1
            blocks.append(block)
        return blocks

    def name(self, blocks: Sequence[int], place: int, ids: Sequence[int], adapter: int = 0) -> None:
        """Say what a text's block at `place` holds, now that it is full.

        Args:
            blocks: the text's, those before `place` named. ids: the block's tokens. adapter: the text's.
        """
        before = self._content[blocks[place - 1]] if place else _START - adapter
        key = before, tuple(ids)
        known = self._found.get(key)
        if known is None:
            self._found[key], self._key[blocks[place]] = blocks[place], key
            self._content[blocks[place]], self._next = self._next, self._next + 1
        else:  # another text wrote the same at the same time: this block is not found by it, what follows it is
            self._content[blocks[place]] = self._content[known]

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less of each; what a text holds behind a block is thrown away before that block."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._key:
                self._idle[block] = None
            else:
                self._blank.append(self._forget(block))

    def _forget(self, block: int) -> int:
        self._content.pop(block, None)
        key = self._key.pop(block, None)
        if key is not None:
            del self._found[key]
        return block
