"""TorchServe's end of a worker's socket, for tests: its context, what it reads from the wire, and one request asked."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers.torchserve.conversation import Conversation
from handlers.torchserve.frames import Incoming
from handlers.torchserve.standby.process import Standby

REST = {"host": "localhost", "content-type": "application/json"}
_numbers = itertools.count()
_wires: weakref.WeakKeyDictionary[Any, Wire] = weakref.WeakKeyDictionary()


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
    """A worker's connection, and what has been written to it, which may be as much as a socket holds between two looks."""

    def __init__(self) -> None:
        self.link, self._other = socket.socketpair()  # nothing comes in
        self._got = b""
        weakref.finalize(self, _close, self.link, self._other)

    @property
    def written(self) -> bytes:
        """All of it."""
        with contextlib.suppress(BlockingIOError):
            while part := self._other.recv(1 << 20, socket.MSG_DONTWAIT):
                self._got += part
        return self._got

    def responses(self, request_id: str) -> list[Response]:
        return [found for found in responses(self.written) if found.request_id == request_id]


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


@dataclass(frozen=True)
class Told:
    """The responses to one request, in order."""

    responses: list[Response]

    @property
    def sent(self) -> list[Response]:
        return self.responses[:-1]

    @property
    def ending(self) -> Response:
        return self.responses[-1]

    @property
    def last(self) -> bytes:
        return self.ending.body

    @property
    def status(self) -> int:
        return self.responses[0].status

    @property
    def body(self) -> bytes:
        return b"".join(response.body for response in self.responses)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def wire_of(handler: Any, cache: Any = None) -> Wire:
    """The connection of a handler that is served; it is from now on. cache: for its metrics."""
    if handler.conversations is None:
        wire = Wire()
        handler.serve_by(Standby(wire.link), cache)
        _wires[handler.conversations] = wire
    return _wires[handler.conversations]


async def ask(handler: Any, row: Mapping[str, Any], headers: Mapping[str, Any] = REST) -> Told:
    """One request, as it is answered beside others."""
    wire = wire_of(handler)
    incoming = Incoming(f"request-{next(_numbers)}", row, headers)
    await handler.conversations.converse(Conversation(handler.conversations, incoming))
    return Told(wire.responses(incoming.id))


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
