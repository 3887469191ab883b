"""What a worker has received from the frontend, in memory that outlives the process that received it.

A process that is killed leaves here what it had not read yet, to the byte; the process that takes its place goes on
there. Bytes are looked at in the socket first, and taken out of it once they are here: the kernel counts what was
looked at and not taken (SO_PEEK_OFF, socket(7)), so that after a death at any moment each byte is in one of the two
places, and it is known in which. Where a socket cannot do that, and for a message that has no room here, `moving` says
that bytes are on their way: a process that died then has left nothing that can be trusted.
"""

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from handlers.torchserve.frames import Incoming, Incomplete, read_message
from handlers.torchserve.standby.shared import SIZE, Shared

_SPAN, _AIM, _MOVING = range(3)  # of the numbers
_PEEK_OFFSET = getattr(socket, "SO_PEEK_OFF", 42)
_MOST = 1 << 18  # bytes at once; more than a socket holds


class FrontendGone(Exception):
    """The connection was closed: nobody asks any more."""


class Inbox:
    """Requests as they come.

    Args:
        size: bytes kept here; a message that has more is read into memory of its own.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._shared = Shared(size)
        self._numbers, self._data = self._shared.numbers, self._shared.data
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._waiting = False
        self._peeks: bool | None = None
        self._taken = bytearray()
        self._needed = 0  # bytes of the message that is not whole yet, at least

    @property
    def moving(self) -> bool:
        """Whether bytes are between the socket and here, and nobody knows which."""
        return bool(self._numbers[_MOVING])

    def settle(self, link: socket.socket) -> bool:
        """Bring what a dead process was just receiving to one of its two places; False if nobody knows where it is."""
        if self.moving:
            return False
        start, end = self._span()
        aim = self._numbers[_AIM]
        if aim not in (0, end):
            self._take(link, link.getsockopt(socket.SOL_SOCKET, _PEEK_OFFSET))
            self._set(start, aim)
        self._numbers[_AIM] = 0
        self._peeks = None
        return True

    def unread(self) -> set[str]:
        """The ids of the requests that are whole here and that nobody has read."""
        found: set[str] = set()
        place, end = self._span()
        with contextlib.suppress(Incomplete):
            while True:
                requests, place = read_message(self._data, place, end)
                found |= {request.id for request in requests}
        return found

    def requests(
        self, link: socket.socket, idle: Callable[[], bool], note: Callable[[Incoming], None]
    ) -> list[Incoming]:
        """All requests that are there.

        Args:
            link: the connection to the frontend, blocking.
            idle: whether to wait for a request, or for `wake`, where there is none.
            note: called with each before it counts as read.
        Raises: FrontendGone. ValueError for what is no request.
        """
        found = self._read(link, note)
        watched: list[Any] = [link, self._woken]
        while True:
            self._waiting = True  # before `idle` is asked: who changes that sees this, or is seen
            ready, _, _ = select.select(watched, [], [], None if not found and idle() else 0)
            self._waiting = False
            if self._woken in ready:
                os.read(self._woken, 1 << 12)
            if link not in ready:
                return found
            self._receive(link)
            found += self._read(link, note)

    def wake(self) -> None:
        """Let a thread that waits in `requests` return, if there is one."""
        if self._waiting:
            with contextlib.suppress(BlockingIOError):  # it is told already
                os.write(self._waker, b"w")

    def _receive(self, link: socket.socket) -> None:
        start, end = self._span()
        if start == end:
            start, end = self._empty()
        if self._peeks is None:
            self._peeks = _looks_ahead(link)
        if not self._peeks:
            self._numbers[_MOVING] = 1
            count = link.recv_into(self._data[end:])
            self._set(start, end + count)
            self._numbers[_MOVING] = 0
        elif count := link.recv_into(self._data[end : end + _MOST], 0, socket.MSG_PEEK):
            self._numbers[_AIM] = end + count
            self._take(link, count)
            self._set(start, end + count)
            self._numbers[_AIM] = 0
        if not count:
            raise FrontendGone

    def _take(self, link: socket.socket, count: int) -> None:
        """Let the socket forget bytes that are here."""
        if not self._taken:
            self._taken = bytearray(_MOST)
        while count:
            count -= link.recv_into(self._taken, count)

    def _read(self, link: socket.socket, note: Callable[[Incoming], None]) -> list[Incoming]:
        found: list[Incoming] = []
        while True:
            start, end = self._span()
            if end - start < self._needed:
                return found
            try:
                requests, place = read_message(self._data, start, end)
            except Incomplete as incomplete:
                if self._has_room(start, end, incomplete.needed):
                    self._needed = incomplete.needed
                    return found
                found += self._large(link, note, incomplete.needed)
                continue
            for request in requests:
                note(request)
            self._set(place, end)
            self._needed = 0
            found += requests

    def _has_room(self, start: int, end: int, needed: int) -> bool:
        """Whether so many bytes fit, from the begin of the memory if need be."""
        if start + needed <= self._size:
            return True
        if needed > self._size or end - start > start:  # it would be written over itself
            return False
        self._data[: end - start] = self._data[start:end]
        self._set(0, end - start)
        return True

    def _large(self, link: socket.socket, note: Callable[[Incoming], None], needed: int) -> list[Incoming]:
        """A message that has no room here: what is here of it, and the rest straight from the socket."""
        start, end = self._span()
        self._numbers[_MOVING] = 1
        data = bytearray(self._data[start:end])
        while True:
            have = len(data)
            data += bytes(needed - have)
            with memoryview(data) as view:
                while have < needed:
                    count = link.recv_into(view[have:])
                    if not count:
                        raise FrontendGone
                    have += count
            try:
                requests, _ = read_message(data, 0, needed)
            except Incomplete as incomplete:
                needed = incomplete.needed
                continue
            for request in requests:
                note(request)
            self._empty()
            self._numbers[_MOVING] = 0
            self._needed = 0
            return requests

    def _empty(self) -> tuple[int, int]:
        """Nothing is here: begin at the begin, and give back what a large message took."""
        _, end = self._span()
        self._set(0, 0)
        self._shared.give_back(end)
        return 0, 0

    def _span(self) -> tuple[int, int]:
        """Where what was not read begins, and where it ends."""
        return divmod(self._numbers[_SPAN], 1 << 32)

    def _set(self, start: int, end: int) -> None:
        self._numbers[_SPAN] = start << 32 | end


def _looks_ahead(link: socket.socket) -> bool:
    """Let the kernel count what is looked at in this socket, from now on; whether it can."""
    try:
        link.setsockopt(socket.SOL_SOCKET, _PEEK_OFFSET, 0)
    except OSError:
        return False
    return True
