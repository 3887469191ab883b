"""TorchServe's messages between its frontend and a worker, as bytes: what is asked, and what is answered.

Source: ts/protocol/otf_message_handler.py of 0.12, and the frontend's ModelRequestEncoder and ModelResponseDecoder. Numbers
are 32 bits, big end first; a text is its length and its bytes; a list of texts or requests ends with −1.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from handlers.protocols.headers import Headers
from handlers.torchserve.requests import STREAM, is_rest, reason_of

_NUMBER = struct.Struct("!i")
_PREDICT = ord("I")
_END = -1


class Incomplete(Exception):
    """The message is not whole yet. needed: bytes from its begin that there must be at least."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes are needed")
        self.needed = needed


class Incoming:
    """One request.

    id: the frontend's. row: its fields, as bytes; of one that came several times and whose name ends in [] all values, with
    a comma between, else the last. headers: its own, and of each field its content type, as TorchServe's context has them.
    rest: whether it came over HTTP, else gRPC. bytes: of its fields.
    """

    __slots__ = ("bytes", "headers", "id", "rest", "row")

    def __init__(self, id: str, row: Mapping[str, bytes], headers: Mapping[str, Any]) -> None:
        self.id, self.row, self.headers = id, row, headers
        self.rest = is_rest(headers)
        self.bytes = sum(map(len, row.values()))


def read_message(data: bytes | bytearray | memoryview, start: int, end: int) -> tuple[list[Incoming], int]:
    """The requests of the message that begins at `start`.

    Args:
        data: what has arrived. start, end: the part that counts.
    Returns: (its requests, where it ends).
    Raises: Incomplete while bytes of it are missing. ValueError for another message than a prediction.
    """
    reader = _Reader(data, start, end)
    reader.want(1)
    if data[start] != _PREDICT:
        raise ValueError(f"a message of the unknown kind {data[start]:#x} came from the frontend")
    reader.place += 1
    found = []
    while (length := reader.number()) != _END:
        found.append(reader.request(length))
    return found, reader.place


class _Reader:
    def __init__(self, data: bytes | bytearray | memoryview, start: int, end: int) -> None:
        self._data, self._start, self._end = data, start, end
        self.place = start

    def want(self, count: int) -> None:
        if self.place + count > self._end:
            raise Incomplete(self.place + count - self._start)

    def number(self) -> int:
        self.want(4)
        (found,) = _NUMBER.unpack_from(self._data, self.place)
        self.place += 4
        return int(found)

    def content(self, length: int) -> bytes:
        if length < 0:
            raise ValueError(f"a length of {length} came from the frontend")
        self.want(length)
        self.place += length
        return bytes(self._data[self.place - length : self.place])

    def contents(self, size: int) -> list[bytes]:
        """A list of groups of `size` contents each, one behind the other. (A worker reads some forty of them a request.)"""
        data, place, end, number = self._data, self.place, self._end, _NUMBER.unpack_from
        found: list[bytes] = []
        while True:
            if place + 4 > end:
                raise Incomplete(place + 4 - self._start)
            (length,) = number(data, place)
            place += 4
            if length == _END and len(found) % size == 0:
                self.place = place
                return found
            if length < 0:
                raise ValueError(f"a length of {length} came from the frontend")
            if place + length > end:
                raise Incomplete(place + length - self._start)
            found.append(bytes(data[place : place + length]))
            place += length

    def request(self, length: int) -> Incoming:
        request_id = self.content(length).decode("ascii", "replace")
        own = [part.decode("utf-8", "replace") for part in self.contents(2)]
        fields = self.contents(3)
        row, types = dict[str, bytes](), dict[str, Any]()
        for first in range(0, len(fields), 3):
            name = fields[first].decode("utf-8", "replace")
            types[name] = {"content-type": fields[first + 1].decode("utf-8", "replace")}
            value = fields[first + 2]
            # A form sends a list as several fields of one name, which ends so.
            row[name] = row[name] + b"," + value if name.endswith("[]") and name in row else value
        return Incoming(request_id, row, Headers(types, dict(zip(own[::2], own[1::2], strict=True))))


class Answers:
    """Answers to several requests in one message; see handlers.torchserve.channel for why each of them has this form.

    ids: of the requests that the frontend forgets with it. refused: how many of the answers are errors.
    """

    _HEAD = _NUMBER.pack(200) + _NUMBER.pack(2) + b"ok"

    def __init__(self) -> None:
        self._parts = [self._HEAD]
        self.ids: list[str] = []
        self.refused = 0

    def add(self, request_id: str, rest: bool, body: bytes, content_type: str, status: int = 200) -> None:
        """The whole answer to a request, with which the frontend forgets it.

        Args:
            rest: whether it came over HTTP, else gRPC. status: HTTP's, which gRPC cannot carry.
        """
        self.refused += status != 200
        if rest:
            self._put(request_id, body, content_type, status, "true" if status == 200 else None)
            body = b""
        self.end(request_id, body, content_type)

    def piece(self, request_id: str, body: bytes, content_type: str) -> None:
        """A part of an answer, behind which more follows."""
        self._put(request_id, body, content_type, 200, "true")

    def end(self, request_id: str, body: bytes, content_type: str) -> None:
        """The last part of an answer that was begun."""
        self.ids.append(request_id)
        self._put(request_id, body, content_type, 200, "false")

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return len(self._parts) == 1

    def _put(self, request_id: str, body: bytes, content_type: str, status: int, more: str | None) -> None:
        name = request_id.encode()
        sized = (_NUMBER.pack(len(name)), name, _described(content_type, status, more), _NUMBER.pack(len(body)), body)
        self._parts += sized

    def message(self) -> bytes:
        """The message's bytes."""
        return b"".join((*self._parts, _NUMBER.pack(_END)))


def loaded_message() -> bytes:
    """What the frontend takes for the answer to the command to load; it forgets that command with it."""
    return _NUMBER.pack(200) + _text("loads") + _NUMBER.pack(_END)


def lost_message(reason: str) -> bytes:
    """With it the frontend answers 503 to everything that it has given to this worker and has no answer for."""
    return _NUMBER.pack(503) + _text(reason) + _NUMBER.pack(_END)


@lru_cache(maxsize=256)
def _described(content_type: str, status: int, more: str | None) -> bytes:
    """What stands between an answer's id and its body."""
    headers = _NUMBER.pack(0) if more is None else _NUMBER.pack(1) + _text(STREAM) + _text(more)
    return _text(content_type) + _NUMBER.pack(status) + _text(reason_of(status)) + headers


def _text(value: str) -> bytes:
    content = value.encode()
    return _NUMBER.pack(len(content)) + content
