"""How a worker tells what TorchServe's frontend hands over, and what the frontend reads from its answers."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

STREAM = "ts_stream_next"  # TorchServe's response header: "true" where more follows, "false" at a stream's end
_ANSWERED = (400, 413, 500, 503, 504)  # the statuses of errors that a handler answers


def reason_of(status: int) -> str:
    """The reason phrase of an HTTP status that a handler answers an error with; "" for any other."""
    return HTTPStatus(status).phrase if status in _ANSWERED else ""


def is_rest(headers: Mapping[str, Any]) -> bool:
    """Whether a request came over HTTP: a gRPC call brings no headers of its own, only those of its inputs."""
    return any(isinstance(value, str) for value in headers.values())


def asks_for_stream(row: Mapping[str, Any]) -> bool:
    """Whether a gRPC call has the input `stream: true`, which only a client of StreamPredictions may send."""
    value = row.get("stream", b"")
    text = bytes(value).decode("ascii", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
    return text.strip().lower() in ("true", "1")
