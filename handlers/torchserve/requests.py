"""How a worker tells what TorchServe's frontend hands over, and what the frontend reads from its answers."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from handlers.errors import BadRequest
from handlers.protocols.headers import header_of

DEADLINE = "x-deadline-ms"
_LEAST_BYTES = 64 << 20
_LONGEST = 3_600_000  # milliseconds that a request may say
STREAM = "ts_stream_next"  # TorchServe's response header: "true" where more follows, "false" at a stream's end
_ANSWERED = (400, 404, 413, 500, 503, 504)  # the statuses of errors that a handler answers


def reason_of(status: int) -> str:
    """The reason phrase of an HTTP status that a handler answers an error with; "" for any other."""
    return HTTPStatus(status).phrase if status in _ANSWERED else ""


def most_waiting(body: int) -> int:
    """Bytes of bodies that may wait together in a worker. body: most that one of them may have."""
    return max(_LEAST_BYTES, 2 * body)


def is_rest(headers: Mapping[str, Any]) -> bool:
    """Whether a request came over HTTP: a gRPC call brings no headers of its own, only those of its inputs."""
    return any(isinstance(value, str) for value in headers.values())


def asks_for_stream(row: Mapping[str, Any]) -> bool:
    """Whether a gRPC call has the input `stream: true`, which only a client of StreamPredictions may send."""
    value = row.get("stream", b"")
    text = bytes(value).decode("ascii", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
    return text.strip().lower() in ("true", "1")


def seconds_of(headers: Mapping[str, Any]) -> float:
    """How long a request may wait, by its own header; inf without one.

    Raises: BadRequest for what is no such number.
    """
    stated = header_of(headers, DEADLINE)
    if stated is None:
        return float("inf")
    if not (stated.isascii() and stated.isdigit() and 1 <= int(stated[:8]) <= _LONGEST and len(stated) < 8):
        raise BadRequest(f"the header {DEADLINE} is {stated[:40]!r}; an integer from 1 to {_LONGEST} is expected")
    return int(stated) / 1000
