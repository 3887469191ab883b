"""Moves a runtime graph's constants into packed weights, where that saves enough; see handlers.storage.graph_weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from archiver.storage.codec_choice import WeightLayout
from archiver.storage.layouts import layout_for
from archiver.storage.packing import encode_all, write_encoded
from handlers.storage.graph_weights import GRAPH_WEIGHTS, PACKED

WORTH = 0.9  # packed when that takes at most this share of the plain bytes
_LEAST_BYTES = 1024  # smaller constants stay in the graph
_ALIGN = 64
# OpenVINO's element types that the codecs know; what else there is keeps its bytes as they are.
_ELEMENTS = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i64": np.int64, "i32": np.int32}


def pack_onnx(path: Path, known: Mapping[bytes, WeightLayout]) -> bool:
    """Replace the constants of an ONNX graph by packed weights beside it.

    Args:
        path: of model.onnx, which is written anew.
        known: layouts by content, as archiver.storage.layouts.layouts_by_content gives them.
    Returns: False when packing saves too little and nothing was changed.
    """
    model = onnx.load(str(path))
    large = [item for item in model.graph.initializer if len(item.raw_data) >= _LEAST_BYTES]
    arrays = {item.name: numpy_helper.to_array(item) for item in large}
    offsets, size = _lay_out({name: array.nbytes for name, array in arrays.items()})
    if not _write(path.parent, arrays, {name: [offset] for name, offset in offsets.items()}, size, known):
        return False
    for item in large:
        length = len(item.raw_data)
        item.ClearField("raw_data")
        item.data_location = TensorProto.EXTERNAL
        for key, value in (("location", GRAPH_WEIGHTS), ("offset", str(offsets[item.name])), ("length", str(length))):
            entry = item.external_data.add()
            entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString(deterministic=True))
    return True


def pack_openvino(xml: Path, known: Mapping[bytes, WeightLayout]) -> bool:
    """Replace the weights file of an OpenVINO IR by packed weights that give the same bytes back; model.xml stays as it is.

    Args:
        xml: of model.xml, with model.bin beside it.
        known: layouts by content, as archiver.storage.layouts.layouts_by_content gives them.
    Returns: False when packing saves too little and nothing was changed.
    """
    binary = xml.with_suffix(".bin")
    content = np.frombuffer(binary.read_bytes(), np.uint8)
    arrays: dict[str, np.ndarray] = {}
    places: dict[str, list[int]] = {}
    end = 0
    for offset, size, element, shape in sorted(_constants(xml.read_text(encoding="utf-8"))):
        if offset < end:  # the same constant again, or one inside another
            continue
        if offset > end:  # alignment between constants
            arrays[f"{end}"], places[f"{end}"] = content[end:offset], [end]
        part = content[offset : offset + size]
        kind = _ELEMENTS.get(element)
        whole = kind is not None and size == int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        arrays[f"{offset}"] = part.view(kind).reshape(shape or (1,)) if whole and kind is not None else part
        places[f"{offset}"] = [offset]
        end = offset + size
    if end < len(content):
        arrays[f"{end}"], places[f"{end}"] = content[end:], [end]
    if not _write(xml.parent, arrays, places, len(content), known):
        return False
    binary.unlink()
    return True


def _constants(text: str) -> list[tuple[int, int, str, tuple[int, ...]]]:
    """(offset, size, element type, shape) of every constant of an IR."""
    found = []
    for data in re.findall(r"<data\b[^>]*\boffset=[^>]*>", text):
        fields = dict(re.findall(r'(\w+)="([^"]*)"', data))
        if {"offset", "size", "element_type"} <= fields.keys():
            shape = tuple(int(part) for part in fields.get("shape", "").split(",") if part.strip())
            found.append((int(fields["offset"]), int(fields["size"]), fields["element_type"], shape))
    return list(dict.fromkeys(found))


def _lay_out(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """An offset for each constant, aligned, and the size of the whole."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = -(-end // _ALIGN) * _ALIGN
        end = offsets[name] + size
    return offsets, end


def _write(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    places: Mapping[str, list[int]],
    size: int,
    known: Mapping[bytes, WeightLayout],
) -> bool:
    layouts = {name: layout for name, array in arrays.items() if (layout := layout_for(array, known)) is not None}
    encoded = encode_all(arrays, layouts)
    plain = sum(array.nbytes for array in arrays.values())
    if not arrays or sum(item.nbytes for item in encoded.values()) > WORTH * plain:
        return False
    write_encoded(folder / PACKED, encoded, {"image": {"size": size, "at": dict(places)}})
    return True
