"""Bytes of answers: compact JSON, other texts, server-sent events, and the error body that all forms share."""

import json
from dataclasses import dataclass
from typing import Any

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Text:
    """An answer that is no JSON."""

    body: bytes
    content_type: str


def body_of(value: Any) -> tuple[bytes, str]:
    """(body, content type) of what a form has rendered: a JSON value, or `Text`."""
    return (value.body, value.content_type) if isinstance(value, Text) else (to_json(value), JSON)


def to_json(value: Any) -> bytes:
    """Compact JSON, UTF-8 as it is.

    Raises: ValueError for a number that is not finite.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def error_body(code: int, message: str) -> bytes:
    """The body that tells a mistake; code: the HTTP status, repeated for gRPC, which cannot carry it."""
    return to_json({"error": {"code": code, "message": message}})


def event(value: Any) -> bytes:
    """One server-sent event of a JSON value."""
    return event_of(to_json(value))


def event_of(body: bytes) -> bytes:
    """One server-sent event of a body without line breaks."""
    return b"data: " + body + b"\n\n"
