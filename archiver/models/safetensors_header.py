"""What lies in a safetensors file, read from its header alone: names, types, shapes. No tensor is loaded.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8},
    **{"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
}


@dataclass(frozen=True)
class TensorInfo:
    """dtype as safetensors names it ("F32"); size in bytes on disk."""

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """{tensor name: TensorInfo}.

    raises ValueError that says what is wrong with the file: truncated, not safetensors, inconsistent offsets
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            hint = " (it looks like a Git LFS pointer: fetch the real file)" if _is_pointer(path) else ""
            raise ValueError(
                f"its header is said to be {length} bytes, the file has {size}: truncated or not safetensors{hint}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        items = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _tensor(name, entry) for name, entry in items.items()}
        ranges = sorted((entry["data_offsets"][0], entry["data_offsets"][1]) for entry in items.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its header is corrupt: {error}") from error
    end = 0
    for start, stop in ranges:
        if start != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {end}: corrupt")
        end = stop
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes, its header describes {8 + length + end}: truncated or corrupt")
    return tensors


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20).startswith(b"version https://git")


def _tensor(name: str, entry: dict[str, object]) -> TensorInfo:
    dtype, shape, offsets = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"tensor {name} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise ValueError(f"tensor {name} has the offsets {offsets!r}")
    info = TensorInfo(dtype, tuple(shape), offsets[1] - offsets[0])
    bits = BITS.get(dtype)
    if bits is not None and info.size * 8 != info.elements * bits:
        raise ValueError(f"tensor {name} of {dtype} {shape} takes {info.size} bytes")
    return info
