"""Packed weights, the reading side: how compressed tensors lie in one safetensors file (storage is not compute).

The file's metadata holds one JSON text under `marpress`: {"version": 1, "tensors": {name: entry}}. An entry says by which
codec the tensor lies there (handlers.storage.codecs), or, for a tensor that is stored under another name already,
{"codec": "alias", "of": name}. What was packed comes back value for value in the type it had.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.storage.codecs import decode

VERSION = 1
METADATA = "marpress"


def load_packed(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a packed file, in the type it was packed in. UnsoundArchive says what is wrong with the file."""
    return dict(iterate_packed(path))


def iterate_packed(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) one after another, so that a reader needs not hold them all. An alias gives the same array again."""
    from safetensors import SafetensorError, safe_open

    entries = read_description(path)["tensors"]
    kept = {entry["of"]: None for entry in entries.values() if isinstance(entry, dict) and _is_alias(entry)}
    done: dict[str, np.ndarray] = {}
    with safe_open(path, framework="numpy") as file:
        present = set(file.keys())

        def fetch(key: str) -> np.ndarray:
            if key not in present:
                raise UnsoundArchive(f"{path.name}: the stored array {key!r} is missing")
            try:
                stored: np.ndarray = file.get_tensor(key)
                return stored
            except (SafetensorError, TypeError, KeyError, AttributeError) as error:
                raise UnsoundArchive(f"{path.name}: the stored array {key!r} cannot be read ({error})") from error

        def read(name: str) -> np.ndarray:
            if name not in done:
                array = decode(entries[name], name, fetch)
                if name not in kept:
                    return array
                done[name] = array
            return done[name]

        for name, entry in entries.items():
            if not isinstance(entry, dict) or not _is_alias(entry):
                yield name, read(name)
                continue
            first = entry["of"]
            if first not in entries or not isinstance(entries[first], dict) or _is_alias(entries[first]):
                raise UnsoundArchive(f"{path.name}: {name!r} is the same as {first!r}, which is not stored")
            yield name, read(first)


def _is_alias(entry: Mapping[str, Any]) -> bool:
    return entry.get("codec") == "alias" and isinstance(entry.get("of"), str)


def read_description(path: Path) -> dict[str, Any]:
    """The JSON in a packed file's metadata; UnsoundArchive when there is none or its version is not known."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads((file.metadata() or {})[METADATA])
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise UnsoundArchive(
            f"{path.name} cannot be read as packed weights ({error!r}): rebuild the archive"
        ) from error
    version = described.get("version") if isinstance(described, dict) else None
    if version != VERSION:
        raise UnsoundArchive(
            f"{path.name} has format version {version!r}; this code reads version {VERSION}: rebuild the archive"
        )
    if not isinstance(described.get("tensors"), dict):
        raise UnsoundArchive(f"{path.name} describes no tensors: rebuild the archive")
    found: dict[str, Any] = described
    return found
