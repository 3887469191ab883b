"""What a worker has received from the frontend, in memory that outlives the process that received it.

A process that is killed while it computes leaves here what it had not read yet, to the byte; the process that takes its
place goes on there. While bytes are on their way between the socket and this memory, `moving` says so: a process that died
then has left nothing that can be trusted.
"""

import mmap
import select
import socket
import struct
from collections.abc import Callable

from handlers.torchserve.frames import Incoming, Incomplete, read_message

_STATE = struct.Struct("=BII")  # moving, where what was not read begins, where it ends
_AT = 64  # the bytes begin
SIZE = 1 << 20


class FrontendGone(Exception):
    """The connection was closed: nobody asks any more."""


class Inbox:
    """Requests as they come.

    Args:
        size: bytes kept here; a message that has more is read into memory of its own.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, _AT + size)  # anonymous and shared: what is forked from here has the same
        self._data = memoryview(self._memory)[_AT:]

    @property
    def moving(self) -> bool:
        """Whether bytes are between the socket and here."""
        return bool(self._memory[0])

    def requests(self, link: socket.socket, wait: bool, note: Callable[[Incoming], None]) -> list[Incoming]:
        """All requests that are there.

        Args:
            link: the connection to the frontend, blocking. wait: for one, where there is none.
            note: called with each before it counts as read.
        Raises: FrontendGone. ValueError for what is no request.
        """
        found = self._read(link, note)
        while True:
            ready, _, _ = select.select([link], [], [], None if wait and not found else 0)
            if not ready:
                return found
            self._receive(link)
            found += self._read(link, note)

    def _receive(self, link: socket.socket) -> None:
        _, start, end = self._get()
        self._set(True, start, end)
        if start and (start == end or end == self._size):
            self._data[: end - start] = bytes(self._data[start:end])
            start, end = 0, end - start
        count = link.recv_into(self._data[end:])
        self._set(False, start, end + count)
        if not count:
            raise FrontendGone

    def _read(self, link: socket.socket, note: Callable[[Incoming], None]) -> list[Incoming]:
        found: list[Incoming] = []
        while True:
            _, start, end = self._get()
            try:
                requests, place = read_message(self._data, start, end)
            except Incomplete as incomplete:
                if incomplete.needed > self._size:
                    requests, place = self._large(link, note, incomplete.needed), end
                    found += requests
                    continue
                return found
            for request in requests:
                note(request)
            self._set(False, place, end)
            found += requests

    def _large(self, link: socket.socket, note: Callable[[Incoming], None], needed: int) -> list[Incoming]:
        """A message that has no room here: what is here of it, and the rest straight from the socket."""
        _, start, end = self._get()
        self._set(True, start, end)
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
            self._set(False, 0, 0)
            return requests

    def _get(self) -> tuple[int, int, int]:
        return _STATE.unpack_from(self._memory, 0)

    def _set(self, moving: bool, start: int, end: int) -> None:
        _STATE.pack_into(self._memory, 0, moving, start, end)
