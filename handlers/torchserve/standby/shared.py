"""Memory that all processes of a worker share, and that outlives each of them."""

import mmap

NUMBERS = 8
_AT = 8 * NUMBERS  # the bytes begin
_KEPT = 1 << 20  # of what was touched once
SIZE = 1 << 26  # of which what was never touched costs nothing


class Shared:
    """Numbers and bytes.

    numbers: NUMBERS of 64 bits, 0 at first; each is written at once, so that a process which dies leaves the old one or the
    new one. data: the bytes.

    Args:
        size: of the bytes.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._memory = mmap.mmap(-1, _AT + size)  # anonymous: what is forked from here has the same
        self.numbers = memoryview(self._memory)[:_AT].cast("Q")
        self.data = memoryview(self._memory)[_AT:]

    def give_back(self, used: int) -> None:
        """Nothing counts of the bytes any more, of which the first `used` were touched; what is much of it is freed."""
        if used > _KEPT and hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, _KEPT, len(self._memory) - _KEPT)
