"""Storage codecs, the reading side: an entry that describes a tensor, and its parts, back to the tensor.

An entry is JSON: {codec, dtype, shape, parts: {part name: entry}, …}. A part is a tensor itself, so codecs nest: the
non-zeros of a bitmask may lie as a palette. Only `plain` holds bytes. Everything an entry claims is checked against what
lies in the file before it is used; UnsoundArchive says what does not fit.

    plain      the tensor as it is
    half       float32 whose values are all float16 or bfloat16 numbers, as those
    bitmask    one bit a value, and the values that are not zero
    n:m        at most n values in every m consecutive ones of a row: n values and their positions in ceil(log2 m) bits
    palette    codebook: the distinct values of each block, and an index of 0 … 8 bits for each value
    sign       a scale for each block, times a pattern of −1, 0 and 1
    groups     value = (q − zero) · scale in float32, with a scale and a zero for each group of a row
    product    rows joined from pieces that all rows share, by a code of 0 … 8 bits for each piece
    factors    U·Vᵀ computed in float64 and rounded to float32, and the few values where that is not the tensor
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.storage.bit_packing import packed_size, unpack, width_of

DTYPES = {
    **{"float32": np.float32, "float16": np.float16, "float64": np.float64, "bool": np.bool_},
    **{"int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64},
    **{"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64},
}
_CHUNK = 1 << 16  # values looked up at a time: indices and results stay in the cache
_DEPTH = 4

Fetch = Callable[[str], np.ndarray]  # the stored array at a path; UnsoundArchive when there is none
Part = Callable[..., np.ndarray]


def decode(entry: Any, path: str, fetch: Fetch, depth: int = 0) -> np.ndarray:
    """The tensor that `entry` describes, its stored arrays at `path` and below (`path::part`).

    UnsoundArchive when the entry is malformed, its codec unknown, or a part missing or of the wrong size.
    """
    if not isinstance(entry, Mapping) or depth > _DEPTH:
        raise UnsoundArchive(f"packed tensor {path!r}: its description is malformed")
    codec, dtype, shape = entry.get("codec"), entry.get("dtype"), entry.get("shape")
    if not isinstance(codec, str) or codec not in _DECODERS:
        raise UnsoundArchive(
            f"packed tensor {path!r}: unknown codec {codec!r}; this code reads {', '.join(_DECODERS)}: rebuild the archive"
        )
    if (
        not isinstance(dtype, str)
        or dtype not in DTYPES
        or not isinstance(shape, list)
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise UnsoundArchive(f"packed tensor {path!r}: dtype {dtype!r} and shape {shape!r} describe no tensor")
    if codec == "plain":
        stored = fetch(path)
        if stored.dtype != DTYPES[dtype] or list(stored.shape) != shape:
            raise UnsoundArchive(
                f"packed tensor {path!r}: {stored.dtype} {list(stored.shape)} lies there, {dtype} {shape} is expected"
            )
        return stored
    turned = entry.get("transposed") is True
    inner = tuple(reversed(shape)) if turned else tuple(shape)
    parts = entry.get("parts")

    def part(name: str, kind: str | None = None, size: int | None = None) -> np.ndarray:
        if not isinstance(parts, Mapping) or name not in parts:
            raise UnsoundArchive(f"packed tensor {path!r}: codec {codec} needs the part {name!r}")
        found = decode(parts[name], f"{path}::{name}", fetch, depth + 1)
        if (kind is not None and found.dtype != DTYPES[kind]) or (size is not None and found.size != size):
            raise UnsoundArchive(
                f"packed tensor {path!r}: its {name} are {found.size} of {found.dtype}, "
                f"{'any number' if size is None else size} of {kind or found.dtype} are expected"
            )
        return found

    try:
        found = _DECODERS[codec](entry, inner, dtype, part)
    except _Wrong as error:
        raise UnsoundArchive(f"packed tensor {path!r}: codec {codec}: {error}") from error
    except (MemoryError, OverflowError, ValueError) as error:  # a shape that no memory holds
        raise UnsoundArchive(f"packed tensor {path!r}: {dtype} {shape} cannot be made here ({error})") from error
    return np.ascontiguousarray(found.T) if turned else found


class _Wrong(ValueError):
    """An entry's numbers contradict each other; `decode` adds which tensor it is."""


def _integer(entry: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = entry.get(key)
    if type(value) is not int or not least <= value <= most:
        raise _Wrong(f"{key} is {value!r}; allowed: {least} to {most}")
    return value


def _half(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    if dtype != "float32":
        raise _Wrong(f"dtype {dtype}; allowed: float32")
    if entry.get("as") == "float16":
        return part("values", "float16", size).reshape(shape).astype(np.float32)
    if entry.get("as") == "bfloat16":  # the upper half of a float32
        upper = part("values", "uint16", size).astype(np.uint32)
        upper <<= 16
        return upper.view(np.float32).reshape(shape)
    raise _Wrong(f"as is {entry.get('as')!r}; allowed: float16, bfloat16")


def _bitmask(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    bits = part("mask", "uint8", -(-size // 8))
    mask = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
    values = part("values", dtype, int(np.count_nonzero(mask)))
    out: np.ndarray = np.zeros(size, DTYPES[dtype])
    out[mask] = values.reshape(-1)
    return out.reshape(shape)


def _n_of_m(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    m = _integer(entry, "m", 2, 256)
    n = _integer(entry, "n", 1, m)
    if not shape or shape[-1] % m:
        raise _Wrong(f"rows of {shape[-1:]} are not made of groups of {m}")
    slots, bits = size // m * n, width_of(m)
    positions = unpack(part("positions", "uint8", packed_size(bits, slots)), bits, slots)
    _below(positions, m, 2**bits)
    at = positions.reshape(-1, n) + np.arange(0, size, m)[:, None]
    out: np.ndarray = np.zeros(size, DTYPES[dtype])
    out[at.reshape(-1)] = part("values", dtype, slots).reshape(-1)
    return out.reshape(shape)


def _palette(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    bits, blocks = _integer(entry, "bits", 0, 8), _integer(entry, "blocks", 1, max(1, size))
    tables = part("values", dtype)
    if size % blocks or tables.size % blocks or not 1 <= tables.size // blocks <= 2**bits:
        raise _Wrong(f"{size} values in {blocks} blocks of {bits} bits do not go with {tables.size} distinct ones")
    count, block = tables.size // blocks, size // blocks
    indices = unpack(part("indices", "uint8", packed_size(bits, size)), bits, size)
    _below(indices, count, 2**bits)
    tables = tables.reshape(-1)
    out: np.ndarray = np.empty(size, DTYPES[dtype])
    # mode: with `raise`, numpy buffers its output; every index is known to be below the table's size.
    if blocks == 1:
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            np.take(tables, indices[start:stop], out=out[start:stop], mode="clip")
        return out.reshape(shape)
    together = max(1, _CHUNK // max(1, block))  # whole blocks at a time
    for first in range(0, blocks, together):
        last = min(first + together, blocks)
        span = slice(first * block, last * block)
        offsets = np.arange(first * count, last * count, count, dtype=np.intp)[:, None]
        at = indices[span].reshape(last - first, block) + offsets
        np.take(tables, at.reshape(-1), out=out[span], mode="clip")
    return out.reshape(shape)


def _sign(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    blocks = _integer(entry, "blocks", 1, max(1, size))
    if size % blocks or dtype != "float32":
        raise _Wrong(f"{size} values of {dtype} in {blocks} blocks; allowed: float32 in blocks of one size")
    pattern = part("pattern", "int8", size).reshape(blocks, -1)
    return (pattern * part("scale", "float32", blocks).reshape(blocks, 1)).reshape(shape)


def _groups(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    size = math.prod(shape)
    if len(shape) != 2 or dtype != "float32":
        raise _Wrong(f"{dtype} of shape {list(shape)}; allowed: a float32 matrix")
    rows, columns = shape
    groups = _integer(entry, "groups", 1, max(1, columns))
    if columns % groups:
        raise _Wrong(f"{columns} columns in {groups} groups")
    q = part("q", None, size)
    if q.dtype not in (np.int8, np.uint8):
        raise _Wrong(f"q is {q.dtype}; allowed: int8, uint8")
    out = q.reshape(rows, groups, -1).astype(np.float32)
    if entry.get("zeros") is True:
        out -= part("zero", "uint8", rows * groups).reshape(rows, groups, 1).astype(np.float32)
    out *= part("scale", "float32", rows * groups).reshape(rows, groups, 1)
    return out.reshape(shape)


def _factors(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    if len(shape) != 2 or dtype != "float32":
        raise _Wrong(f"{dtype} of shape {list(shape)}; allowed: a float32 matrix")
    rank = _integer(entry, "rank", 1, max(1, *shape))
    u = part("u", "float32", shape[0] * rank).reshape(shape[0], rank)
    v = part("v", "float32", shape[1] * rank).reshape(shape[1], rank)
    out = multiply_factors(u, v).reshape(-1)
    patched = _integer(entry, "patched", 0, out.size)
    if patched:
        at = part("at", "int64", patched).reshape(-1)
        if at.min() < 0 or at.max() >= out.size:
            raise _Wrong("it patches values outside of the tensor")
        out[at] = part("patch", "float32", patched).reshape(-1)
    return out.reshape(shape)


def _product(entry: Mapping[str, Any], shape: tuple[int, ...], dtype: str, part: Part) -> np.ndarray:
    if len(shape) != 2 or dtype != "float32":
        raise _Wrong(f"{dtype} of shape {list(shape)}; allowed: a float32 matrix")
    rows, columns = shape
    splits, bits = _integer(entry, "splits", 1, max(1, columns)), _integer(entry, "bits", 0, 8)
    pieces = part("pieces", "float32")
    if columns % splits or not columns or pieces.size % columns or not 1 <= pieces.size // columns <= 2**bits:
        raise _Wrong(f"{columns} columns in {splits} pieces of {bits} bits do not go with {pieces.size} numbers")
    clusters = pieces.size // columns
    codes = unpack(part("codes", "uint8", packed_size(bits, rows * splits)), bits, rows * splits)
    _below(codes, clusters, 2**bits)
    return join_pieces(codes.reshape(rows, splits), pieces.reshape(splits, clusters, -1))


def join_pieces(codes: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """The rows that codes stand for.

    Args:
        codes: [rows, splits] integers. pieces: [splits, clusters, width] float32.
    Returns: [rows, splits · width] float32.
    """
    splits, _, width = pieces.shape
    out = np.empty((len(codes), splits, width), np.float32)
    for place in range(splits):
        out[:, place] = pieces[place][codes[:, place]]
    return out.reshape(len(codes), -1)


def multiply_factors(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """U·Vᵀ in float64, rounded to float32. u: [out, rank], v: [in, rank] float32; returns [out, in]."""
    return (u.astype(np.float64) @ v.astype(np.float64).T).astype(np.float32)


def _below(indices: np.ndarray, count: int, possible: int) -> None:
    if count < possible and indices.size and int(indices.max()) >= count:
        raise _Wrong(f"an index of {int(indices.max())} where there are {count}")


_DECODERS: dict[str, Any] = {
    "plain": None,  # decode reads it itself
    "half": _half,
    "bitmask": _bitmask,
    "n:m": _n_of_m,
    "palette": _palette,
    "sign": _sign,
    "groups": _groups,
    "factors": _factors,
    "product": _product,
}
