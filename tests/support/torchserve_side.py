"""TorchServe's end of a worker's socket, for tests: its context, what it reads from the wire, and one request asked."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REST = {"host": "localhost", "content-type": "application/json"}
_numbers = itertools.count()


@dataclass(frozen=True)
class Response:
    """One answer as the frontend decodes it; more: its header ts_stream_next, if it has one."""

    request_id: str
    status: int
    phrase: str
    content_type: str
    headers: dict[str, str]
    body: bytes

    @property
    def more(self) -> str | None:
        return self.headers.get("ts_stream_next")


def responses(wire: bytes) -> list[Response]:
    """All answers in the messages of `wire`, by the layout of ts/protocol/otf_message_handler.py."""
    place = 0

    def number() -> int:
        nonlocal place
        place += 4
        return struct.unpack("!i", wire[place - 4 : place])[0]

    def content(length: int) -> bytes:
        nonlocal place
        assert 0 <= length <= len(wire) - place
        place += length
        return bytes(wire[place - length : place])

    def text() -> str:
        return content(number()).decode()

    found = []
    while place < len(wire):
        assert (number(), text()) == (200, "ok")  # of the message
        while (length := number()) != -1:
            request_id = content(length).decode()
            content_type, status, phrase = text(), number(), text()
            headers = {text(): text() for _ in range(number())}
            found.append(Response(request_id, status, phrase, content_type, headers, content(number())))
    return found


class Wire:
    """A worker's socket that keeps what is written."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self._quiet, other = socket.socketpair()  # nothing comes in
        weakref.finalize(self, _close, self._quiet, other)

    def fileno(self) -> int:
        return self._quiet.fileno()

    def sendall(self, message: bytes) -> None:
        self.messages.append(bytes(message))

    def responses(self, request_id: str) -> list[Response]:
        return [found for found in responses(b"".join(self.messages)) if found.request_id == request_id]


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


@dataclass
class Context:
    """What a handler needs of TorchServe's, for one request."""

    cl_socket: Wire
    headers: Mapping[str, Any]
    model_name: str = "writer"
    metrics: Any = None
    content_type: str | None = None
    response_headers: dict[str, str] = field(default_factory=dict)
    request_id: str = field(default_factory=lambda: f"request-{next(_numbers)}")

    def get_request_id(self, index: int = 0) -> str:
        return self.request_id

    def get_all_request_header(self, index: int) -> Mapping[str, Any]:
        return self.headers

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_type = value

    def set_response_header(self, index: int, key: str, value: str) -> None:
        self.response_headers[key] = value


@dataclass(frozen=True)
class Told:
    """sent: what went out on the socket before the handler returned. last: what it returned."""

    sent: list[Response]
    last: bytes
    context: Context

    @property
    def status(self) -> int:
        return self.sent[0].status if self.sent else 200

    @property
    def body(self) -> bytes:
        return b"".join(response.body for response in self.sent) + self.last

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(handler: Any, row: Mapping[str, Any], headers: Mapping[str, Any] = REST, wire: Any = None) -> Told:
    """One request through the handler's coroutine."""
    wire = wire or Wire()
    context = Context(wire, headers)
    (last,) = await handler.handle([row], context)
    return Told(wire.responses(context.request_id), last, context)


def request_message(requests: list[tuple[str, dict[str, str], list[tuple[str, str, bytes]]]]) -> bytes:
    """A prediction as the frontend encodes it: (id, headers, fields as (name, content type, value)) each."""

    def part(content: bytes) -> bytes:
        return struct.pack("!i", len(content)) + content

    end = struct.pack("!i", -1)
    wire = b"I"
    for request_id, headers, fields in requests:
        wire += part(request_id.encode())
        wire += b"".join(part(name.encode()) + part(value.encode()) for name, value in headers.items()) + end
        wire += b"".join(part(name.encode()) + part(kind.encode()) + part(value) for name, kind, value in fields) + end
    return wire + end
