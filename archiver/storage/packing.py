"""Packed weights, the writing side: every tensor in its smallest codec, in one safetensors file.

The format's owner is handlers.storage.packed, which reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from archiver.storage.codec_choice import Encoded, WeightLayout, encode
from handlers.manifest import canonical_json
from handlers.storage.packed import METADATA, VERSION


def encoded_bytes(array: np.ndarray, layout: WeightLayout | None = None) -> int:
    """Bytes of `array` in its smallest codec, without its share of the description (some 100 bytes a tensor).

    Args:
        array: any shape and type.
        layout: what is known of it.
    Returns: a number of bytes.
    """
    return encode(array, layout).nbytes


def encode_all(
    tensors: Mapping[str, np.ndarray], layouts: Mapping[str, WeightLayout] | None = None
) -> dict[str, Encoded]:
    """Every tensor in its smallest codec; a tensor that equals an earlier one, type and all, becomes its alias.

    Args:
        tensors: name → array.
        layouts: name → what is known of it, for some of them.
    Returns: name → encoded tensor.
    """
    encoded: dict[str, Encoded] = {}
    seen: dict[Any, str] = {}
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
        key = (array.dtype.name, array.shape, hash(array.tobytes()))
        first = seen.setdefault(key, name) if array.size > 1 else name
        if first != name and np.array_equal(tensors[first], array):
            encoded[name] = Encoded({"codec": "alias", "of": first}, {})
        else:
            encoded[name] = encode(array, (layouts or {}).get(name))
    return encoded


def write_encoded(path: Path, encoded: Mapping[str, Encoded], more: Mapping[str, Any] | None = None) -> None:
    """Write tensors that `encode_all` has encoded; the same tensors give the same bytes.

    Args:
        path: of a safetensors file.
        encoded: name → encoded tensor.
        more: JSON to keep beside the tensors' entries, which handlers.storage.packed.read_description gives back.
    """
    from safetensors.numpy import save_file

    arrays = {name + path: array for name, item in encoded.items() for path, array in item.arrays.items()}
    entries = {name: item.entry for name, item in encoded.items()}
    described = canonical_json({**(more or {}), "version": VERSION, "tensors": entries}).decode()
    # One entry: safetensors writes several in an order that changes from run to run.
    save_file(arrays, path, metadata={METADATA: described})


def write_packed(
    path: Path, tensors: Mapping[str, np.ndarray], layouts: Mapping[str, WeightLayout] | None = None
) -> None:
    """Write tensors, each in its smallest codec.

    Args:
        path: of a safetensors file.
        tensors: name → array.
        layouts: name → what is known of it, for some of them.
    """
    write_encoded(path, encode_all(tensors, layouts))
