"""What lies in a safetensors file, by safetensors' own reader: names, types, shapes. No tensor is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

# Bits of one value; safetensors names the types so.
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8},
    **{"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
}
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Buffers, by the ends of their names, that transformers makes itself and that its earlier versions saved beside the
# weights: causal masks, rotations, positions.
LEGACY_BUFFERS = (".masked_bias", ".attn.bias", ".attention.bias", ".inv_freq", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    dtype: as safetensors names it, "F32"
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.elements * BITS.get(self.dtype, 8) // 8


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Returns: {tensor name: TensorInfo}.
    Raises: ValueError that says what is wrong with the file: a Git LFS pointer, truncated, not safetensors, corrupt.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(20)
    if start.startswith(b"version https://git"):
        raise ValueError("it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    length = int.from_bytes(start[:8], "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError(f"its header is said to be {length} bytes, the file has {size}: truncated or not safetensors")
    try:
        with safe_open(path, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            return {name: TensorInfo(found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except SafetensorError as error:
        kind = "truncated or corrupt" if "ncomplete" in str(error) else "its header is corrupt"
        raise ValueError(f"{kind}: {error}") from error


def main_float(tensors: dict[str, TensorInfo]) -> str:
    """The float type that most of the bytes have, as torch names it: "float32", "bfloat16", "float16", "float64"."""
    sizes = dict.fromkeys(FLOATS, 0)
    for info in tensors.values():
        if info.dtype in sizes:
            sizes[info.dtype] += info.size
    return FLOATS[max(sizes, key=lambda dtype: (sizes[dtype], dtype == "F32"))]
