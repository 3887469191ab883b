"""A runtime graph's weights as one run of bytes, rebuilt in memory from packed tensors.

ONNX Runtime and OpenVINO read a graph's large constants from a file beside it, by offset. In a packed archive that file is
not there: `weights.safetensors` holds each constant in its smallest codec, and its metadata the offsets; the session builds
those bytes and hands them over. Storage is not compute: what the runtime sees is what it always sees.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.requirements import require, required
from handlers.storage.packed import iterate_packed, read_description

PACKED = "weights.safetensors"
GRAPH_WEIGHTS = "weights.bin"  # the name under which a graph refers to these bytes; no such file exists
MOST_BYTES = 64 << 30


def read_graph_weights(path: Path) -> np.ndarray:
    """The bytes that a graph reads its constants from.

    Args:
        path: a packed file whose description holds `image: {"size": n, "at": {tensor: [offsets]}}`.
    Returns: [n] uint8.
    Raises: UnsoundArchive when an offset lies outside, or the description is malformed.
    """
    described = read_description(path).get("image")
    size = described.get("size") if isinstance(described, dict) else None
    places = described.get("at") if isinstance(described, dict) else None
    if type(size) is not int or not 0 <= size <= MOST_BYTES or not isinstance(places, dict):
        raise UnsoundArchive(f"{path.name} does not describe a graph's weights: rebuild the archive")
    buffer = np.zeros(size, np.uint8)
    for name, array in iterate_packed(path):
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offsets = places.get(name)
        if not isinstance(offsets, list) or not offsets:
            raise UnsoundArchive(f"{path.name}: {name!r} has no place among the graph's weights")
        for offset in offsets:
            if type(offset) is not int or not 0 <= offset <= size - content.size:
                raise UnsoundArchive(f"{path.name}: {name!r} at {offset!r} lies outside the graph's {size} bytes")
            buffer[offset : offset + content.size] = content
    return buffer


def weights_of(folder: Path, spec: Mapping[str, Any]) -> np.ndarray | None:
    """The graph's weights of an extracted archive.

    Args:
        folder: the archive. spec: serving.json's `session`; `weights` names the packed file.
    Returns: [bytes] uint8 where they lie packed, None where they lie beside the graph as they are.
    Raises: UnsoundArchive when safetensors is missing here, or the file is malformed.
    """
    if "weights" not in spec:
        return None
    require("safetensors", required(folder, "safetensors"))
    return read_graph_weights(folder / spec["weights"])
