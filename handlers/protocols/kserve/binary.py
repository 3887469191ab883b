"""The binary extension of KServe's v2: a JSON head, then the tensors' values as bytes, in its tensors' order.

A tensor whose parameters have `binary_data_size` has so many of them: numbers little end first, BYTES as a length of four
bytes before each element. Source: Triton's «Binary Tensor Data Extension».
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.checks import kind_of
from handlers.protocols.headers import header_of

HEAD_LENGTH = "inference-header-content-length"
_SIZE = "binary_data_size"
_TYPES = {
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def head_length(headers: Mapping[str, Any]) -> int | None:
    """How many bytes of a body are its JSON head; None for a body that is JSON as a whole.

    Raises: BadRequest for a header that is no whole number.
    """
    stated = header_of(headers, HEAD_LENGTH)
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit() and len(stated) < 10):
        raise BadRequest(f"the header {HEAD_LENGTH} is {stated[:40]!r}; a whole number is expected")
    return int(stated)


def filled(document: Any, rest: bytes) -> Any:
    """The document with its binary tensors' values under 'data', as if they had been sent as JSON.

    Args:
        document: the JSON head. rest: the bytes behind it.
    Raises: BadRequest where the bytes are not what the head says.
    """
    tensors = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(tensors, list):
        raise BadRequest("the JSON head has no list 'inputs'")
    found, place = [], 0
    for tensor in tensors:
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get(_SIZE) if isinstance(parameters, dict) else None
        if size is None:
            found.append(tensor)
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - place:
            raise BadRequest(f"'{_SIZE}' is {kind_of(size)}, and {len(rest) - place} bytes are left in the body")
        found.append({**tensor, "data": _values(tensor.get("datatype"), rest[place : place + size])})
        place += size
    if place != len(rest):
        raise BadRequest(f"{len(rest) - place} bytes behind the tensors belong to none of them")
    return {**document, "inputs": found}


def _values(datatype: Any, data: bytes) -> list[Any]:
    if datatype == "BYTES":
        return _elements(data)
    kind = _TYPES.get(datatype) if isinstance(datatype, str) else None
    if kind is None or len(data) % np.dtype(kind).itemsize:
        raise BadRequest(f"{len(data)} bytes are no whole number of values of the datatype {str(datatype)[:20]}")
    values: list[Any] = np.frombuffer(data, kind).tolist()
    return values


def _elements(data: bytes) -> list[str | bytes]:
    found: list[str | bytes] = []
    place = 0
    while place < len(data):
        if place + 4 > len(data) or place + 4 + (size := struct.unpack_from("<I", data, place)[0]) > len(data):
            raise BadRequest(f"an element of a BYTES tensor ends behind its {len(data)} bytes")
        element = data[place + 4 : place + 4 + size]
        place += 4 + size
        try:
            found.append(element.decode())
        except UnicodeDecodeError:  # an image, a recording
            found.append(element)
    return found
