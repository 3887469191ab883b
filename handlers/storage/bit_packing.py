"""Small unsigned integers at 0 … 8 bits each in bytes, unpacked with whole-array operations.

A width is cut into fields of 8, 4, 2 or 1 bits (3 = 2 + 1, 7 = 4 + 2 + 1), which lie one behind the other. A field of w
bits of `count` values takes L = ceil(count · w / 8) bytes; byte i holds at its bits j·w … j·w + w − 1 the value j·L + i.
So every run of L values is unpacked by one shift and one mask over contiguous bytes.
"""

import numpy as np

_FIELDS = {0: (), 1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def width_of(count: int) -> int:
    """The bits that tell `count` ≥ 1 values apart: ceil(log2 count)."""
    return (count - 1).bit_length()


def packed_size(bits: int, count: int) -> int:
    """Bytes of `count` values at `bits` (0 … 8) bits."""
    return sum(-(-count * field // 8) for field in _FIELDS[bits])


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """values: [count] uint8, each below 2**bits. Returns [packed_size(bits, count)] uint8."""
    packed, shift = [], 0
    for field in _FIELDS[bits]:
        length, runs = -(-values.size * field // 8), 8 // field
        part = np.zeros(length * runs, np.uint8)
        part[: values.size] = (values >> shift) & (2**field - 1)
        rows = part.reshape(runs, length)
        out = np.zeros(length, np.uint8)
        for j in range(runs):
            out |= rows[j] << (j * field)
        packed.append(out)
        shift += field
    return np.concatenate(packed) if packed else np.zeros(0, np.uint8)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of pack: [count] uint8. packed must hold packed_size(bits, count) bytes, which the caller checks."""
    out: np.ndarray | None = None
    start, shift = 0, 0
    for field in _FIELDS[bits]:
        length, runs = -(-count * field // 8), 8 // field
        part = packed[start : start + length]
        values = np.empty((runs, length), np.uint8)
        for j in range(runs):
            np.right_shift(part, j * field, out=values[j])
        if field < 8:
            values &= 2**field - 1
        flat = values.reshape(-1)[:count]
        if out is None:
            out = flat
        else:
            out |= flat << shift
        start += length
        shift += field
    return np.zeros(count, np.uint8) if out is None else out
