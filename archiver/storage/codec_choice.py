"""Storage codecs, the writing side: which structure a tensor has, and the codec that takes the fewest bytes.

Every codec gives the tensor back value for value; −0.0 comes back as 0.0. Structure that shows in the values (zeros,
few distinct values, signs, half precision) is found in them; a grid per group and factor pairs are tried where a
layout names them, and taken only where they reproduce the tensor. How the codecs lie in a file: handlers.storage.codecs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from handlers.storage.bit_packing import pack, width_of
from handlers.storage.codecs import join_pieces, multiply_factors

LEAST_BYTES = 1024  # below, a tensor stays plain: its description would outweigh what it saves
WORTH = 0.9  # a codec is taken when it needs at most this share of the plain bytes
PATTERNS = ((1, 4), (2, 4), (4, 8))  # n:m looked for without a layout
MOST_PATCHED = 0.001  # share of a product's values that may differ and are stored beside it
_LEAST_PART = 64
_SAMPLE = 4096
_CHUNK = 1 << 16


@dataclass(frozen=True)
class WeightLayout:
    """What the build knows of how a tensor [rows, columns] can be stored.

    Args:
        grouping: (scale [rows, groups] float, zero point of that shape or None, bits) of a grid, value = (q − zero)·scale.
        factors: (U [rows, rank], V [columns, rank]) float32 with U·Vᵀ the tensor.
        n_m: (n, m) when at most n of every m neighbours of a row are not zero.
        product: (codes [rows, splits], pieces [splits, clusters, width] float32): row r is the pieces at its codes, joined.
    """

    grouping: tuple[Any, Any, int] | None = None
    factors: tuple[np.ndarray, np.ndarray] | None = None
    n_m: tuple[int, int] | None = None
    product: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Encoded:
    """A tensor in one of the codecs.

    Args:
        entry: the description, JSON.
        arrays: what lies in the file, by the path below the tensor's own name ("" for the name itself).
    """

    entry: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def encode(array: np.ndarray, layout: WeightLayout | None = None, least_bytes: int = LEAST_BYTES) -> Encoded:
    """`array` in the codec that takes the fewest bytes; plain where none saves a tenth.

    Args:
        array: float32, float16, int8 or uint8 of any shape; other types, and floats that are not all finite, stay plain.
        layout: what is known of it.
        least_bytes: smaller arrays stay plain.
    Returns: the encoded array; it gives back the same values, −0.0 as 0.0.
    """
    array = np.asarray(array)
    plain = _plain(array)
    if array.dtype not in (np.float32, np.float16, np.int8, np.uint8) or array.nbytes < max(1, least_bytes):
        return plain
    clean = plain.arrays[""]
    if array.dtype.kind == "f":
        if not np.isfinite(clean).all():
            return plain
        clean = clean + array.dtype.type(0)  # −0.0 + 0.0 = 0.0: one zero, not two distinct values
    best = min(_candidates(clean, layout or WeightLayout()), key=lambda found: found.nbytes, default=plain)
    return best if best.nbytes <= WORTH * array.nbytes else plain


def _candidates(array: np.ndarray, layout: WeightLayout) -> Iterator[Encoded]:
    """Of equally small ones the first is taken: those by row come back fastest, transposed ones slowest."""
    by_value = list(_by_value(array))
    # A table for each row pays only where its indices are narrower than those into one table.
    palette = next((found.entry["bits"] for found in by_value if found.entry["codec"] == "palette"), 8)
    most = 2 ** max(0, palette - 1) if palette < 8 else 256
    matrices = array.ndim == 2 and min(array.shape) > 1
    if matrices:
        yield from _by_row(array, layout, most)
    yield from by_value
    if matrices:
        # A graph often holds the transposed weight [in, out]: rows of the weight are columns there.
        for found in _by_row(np.ascontiguousarray(array.T), layout, most):
            yield Encoded({**found.entry, "shape": list(array.shape), "transposed": True}, found.arrays)


def _by_value(array: np.ndarray) -> Iterator[Encoded]:
    """Codecs for which the tensor is one run of values."""
    flat = array.reshape(-1)
    zeros = flat.size - int(np.count_nonzero(flat))
    found = distinct(flat, min(256, 2 ** (8 * array.itemsize - 1)))
    if found is not None:
        values, indices = found
        bits = width_of(len(values))
        parts = {"indices": _plain(pack(indices, bits)), "values": _plain(values)}
        yield _made("palette", array, parts, bits=bits, blocks=1)
    if flat.size > zeros >= flat.size / 8:
        mask = flat != 0
        parts = {"mask": _plain(np.packbits(mask, bitorder="little")), "values": encode(flat[mask], None, _LEAST_PART)}
        yield _made("bitmask", array, parts)
    if array.dtype == np.float32:
        yield from _halves(array)
        signs = _signs(flat.reshape(1, -1))
        if signs is not None:
            yield _made("sign", array, signs, blocks=1)


def _by_row(matrix: np.ndarray, layout: WeightLayout, most: int) -> Iterator[Encoded]:
    """Codecs to which rows matter."""
    rows, columns = matrix.shape
    for n, m in dict.fromkeys((*((layout.n_m,) if layout.n_m else ()), *PATTERNS)):
        parts = _n_of_m(matrix, n, m)
        if parts is not None:
            yield _made("n:m", matrix, parts, n=n, m=m)
            break
    tables = row_tables(matrix, most)
    if tables is not None:
        bits = width_of(tables.shape[1])
        indices = np.concatenate([_lookup(table, row) for table, row in zip(tables, matrix, strict=True)])
        parts = {"indices": _plain(pack(indices, bits)), "values": _plain(tables)}
        yield _made("palette", matrix, parts, bits=bits, blocks=rows)
    if matrix.dtype != np.float32:
        return
    signs = _signs(matrix)
    if signs is not None:
        yield _made("sign", matrix, signs, blocks=rows)
    if layout.grouping is not None:
        yield from _grouped(matrix, layout.grouping)
    if layout.factors is not None:
        yield from _factored(matrix, *layout.factors)
    if layout.product is not None:
        yield from _joined(matrix, *layout.product)


def distinct(flat: np.ndarray, most: int = 256) -> tuple[np.ndarray, np.ndarray] | None:
    """The sorted distinct values of a vector and each value's position among them.

    Args:
        flat: [size].
        most: at most 256.
    Returns: (values, positions [size] uint8); None when there are more than `most` values, which a sample most often
        shows.
    """
    known = np.unique(flat[:: max(1, flat.size // _SAMPLE)])
    indices = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _CHUNK):
        if len(known) > most:
            return None
        chunk = flat[start : start + _CHUNK]
        found = _lookup(known, chunk)
        new = chunk[known[found] != chunk]
        if new.size:
            wider = np.union1d(known, new)
            if len(wider) > most:
                return None
            indices[:start] = np.searchsorted(wider, known).astype(np.uint8)[indices[:start]]
            known, found = wider, _lookup(wider, chunk)
        indices[start : start + _CHUNK] = found
    return (known, indices) if 0 < len(known) <= most else None


def _lookup(table: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Positions in the sorted `table` (at most 256), of the first value that is not below, or of the last: uint8."""
    if len(table) > 64:
        return np.minimum(np.searchsorted(table, chunk), len(table) - 1).astype(np.uint8)
    found = np.zeros(chunk.shape, np.uint8)
    for value in table[:-1]:  # so few comparisons over whole arrays are faster than a search for each value
        found += chunk > value
    return found


def row_tables(matrix: np.ndarray, most: int = 256) -> np.ndarray | None:
    """The sorted distinct values of each row.

    Args:
        matrix: [rows, columns].
        most: most values of a row.
    Returns: [rows, k], the last value repeated where a row has fewer than k; None when a row has so many that a table for
        each row saves nothing.
    """
    rows, columns = matrix.shape
    most = min(most, columns // 2, 2 ** (8 * matrix.itemsize - 1))
    if most < 1 or _most_distinct(matrix[:: -(-rows // 8)]) > most:
        return None
    ordered = np.sort(matrix, axis=1)
    first = np.ones(matrix.shape, bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    counts = first.sum(axis=1)
    k = int(counts.max())
    if k > most:
        return None
    tables = np.repeat(ordered[:, -1:], k, axis=1)
    tables[np.arange(k) < counts[:, None]] = ordered[first]
    return tables


def _most_distinct(rows: np.ndarray) -> int:
    return max(len(np.unique(row)) for row in rows)


def _halves(array: np.ndarray) -> Iterator[Encoded]:
    bits = np.ascontiguousarray(array).view(np.uint32)
    if not (bits.reshape(-1)[:_SAMPLE] & 0xFFFF).any() and not (bits & 0xFFFF).any():
        yield _made("half", array, {"values": _plain((bits >> 16).astype(np.uint16))}, **{"as": "bfloat16"})
    with np.errstate(over="ignore"):
        if (array.reshape(-1)[:_SAMPLE].astype(np.float16) == array.reshape(-1)[:_SAMPLE]).all():
            half = array.astype(np.float16)
            if np.array_equal(half, array):
                yield _made("half", array, {"values": _plain(half)}, **{"as": "float16"})


def _n_of_m(matrix: np.ndarray, n: int, m: int) -> dict[str, Encoded] | None:
    rows, columns = matrix.shape
    if columns % m or np.count_nonzero(matrix) > matrix.size // m * n:
        return None
    groups = matrix.reshape(-1, m)
    empty = groups == 0
    if (m - empty.sum(axis=1) > n).any():
        return None
    # The non-zeros first; where a group has fewer than n, zeros of its own fill up, each at a position of its own.
    positions = np.argsort(empty, axis=1, kind="stable")[:, :n]
    values = np.take_along_axis(groups, positions, axis=1).reshape(-1)
    packed = pack(positions.reshape(-1).astype(np.uint8), width_of(m))
    return {"positions": _plain(packed), "values": encode(values, None, _LEAST_PART)}


def _signs(blocks: np.ndarray) -> dict[str, Encoded] | None:
    """Parts of scale · pattern for [blocks, values] whose rows hold nothing but −s, 0 and s, each row its own s."""
    if not blocks.size:
        return None
    sample = np.abs(blocks[:: -(-len(blocks) // 8), :_SAMPLE])
    if not ((sample == sample.max(axis=1, keepdims=True)) | (sample == 0)).all():
        return None
    magnitude = np.abs(blocks)
    scale = magnitude.max(axis=1, keepdims=True)
    if not ((magnitude == scale) | (magnitude == 0)).all():
        return None
    pattern = np.sign(blocks).astype(np.int8)
    return {"scale": _part(scale[:, 0]), "pattern": _part(pattern, 0)}


def _grouped(matrix: np.ndarray, grouping: tuple[Any, Any, int]) -> Iterator[Encoded]:
    rows, columns = matrix.shape
    scale = np.array(grouping[0], np.float32)
    scale = scale.reshape(rows, -1) if scale.size and scale.size % rows == 0 else np.zeros((0, 0), np.float32)
    groups = scale.shape[1]
    if not groups or columns % groups or not np.isfinite(scale).all():
        return
    steps = scale[:, :, None]
    safe = np.where(steps == 0, np.float32(1), steps)
    blocks = matrix.reshape(rows, groups, -1)
    offset = np.rint(blocks / safe)
    if np.abs(offset).max(initial=0) > 255 or not np.array_equal(offset * steps, blocks):
        return
    offset = offset.astype(np.int16)

    def made(q: np.ndarray, **zero: Encoded) -> Encoded:
        parts = {"q": _part(q.reshape(rows, columns)), "scale": _part(scale), **zero}
        return _made("groups", matrix, parts, groups=groups, zeros=bool(zero))

    if offset.min(initial=0) >= -128 and offset.max(initial=0) <= 127:
        yield made(offset.astype(np.int8))  # a zero point is needed only to make q unsigned
    zero = None if grouping[1] is None else np.array(grouping[1], np.float32)
    if zero is None or zero.size != scale.size or not np.array_equal(zero, np.clip(np.rint(zero), 0, 255)):
        return
    q = offset + zero.reshape(rows, groups, 1).astype(np.int16)
    if q.min(initial=0) >= 0 and q.max(initial=0) <= 255:
        yield made(q.astype(np.uint8), zero=_part(zero.astype(np.uint8).reshape(rows, groups)))


def _factored(matrix: np.ndarray, u: np.ndarray, v: np.ndarray) -> Iterator[Encoded]:
    u, v = np.array(u, np.float32), np.array(v, np.float32)
    if u.ndim != 2 or v.ndim != 2 or (len(u), len(v)) != matrix.shape or u.shape[1] != v.shape[1] or not u.shape[1]:
        return
    if not np.allclose(multiply_factors(u[:4], v), matrix[:4], rtol=1e-5, atol=1e-6):
        return
    product = multiply_factors(u, v)
    at = np.flatnonzero(product != matrix)
    if len(at) > MOST_PATCHED * matrix.size:
        return
    parts = {"u": _part(u), "v": _part(v)}
    if len(at):
        parts |= {"at": _plain(at.astype(np.int64)), "patch": _plain(matrix.reshape(-1)[at])}
    yield _made("factors", matrix, parts, rank=u.shape[1], patched=len(at))


def _joined(matrix: np.ndarray, codes: np.ndarray, pieces: np.ndarray) -> Iterator[Encoded]:
    splits, clusters, width = pieces.shape
    if codes.shape != (len(matrix), splits) or splits * width != matrix.shape[1] or not 0 < clusters <= 256:
        return
    if not np.array_equal(join_pieces(codes, pieces), matrix):
        return
    bits = width_of(clusters)
    parts = {"codes": _plain(pack(codes.astype(np.uint8).reshape(-1), bits)), "pieces": _part(pieces)}
    yield _made("product", matrix, parts, splits=splits, bits=bits)


def _entry(codec: str, array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"codec": codec, "dtype": array.dtype.name, "shape": list(array.shape), **more}


def _plain(array: np.ndarray) -> Encoded:
    # Reshaped, since ascontiguousarray makes a scalar a vector of one.
    return Encoded(_entry("plain", array), {"": np.ascontiguousarray(array).reshape(array.shape)})


def _part(array: np.ndarray, least_bytes: int = _LEAST_PART) -> Encoded:
    return encode(array, None, least_bytes)


def _made(codec: str, array: np.ndarray, parts: dict[str, Encoded], **more: Any) -> Encoded:
    """A codec over parts that are encoded themselves."""
    entry = _entry(codec, array, **more, parts={name: part.entry for name, part in parts.items()})
    arrays = {f"::{name}{path}": stored for name, part in parts.items() for path, stored in part.arrays.items()}
    return Encoded(entry, arrays)
