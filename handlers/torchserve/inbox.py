"""What a worker has received from the frontend, in memory that outlives the process that received it.

A process that is killed while it computes leaves here what it had not read yet, to the byte; the process that takes its
place goes on there. While bytes are on their way between the socket and this memory, `moving` says so: a process that died
then has left nothing that can be trusted.
"""

import contextlib
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

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
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._waiting = False

    @property
    def moving(self) -> bool:
        """Whether bytes are between the socket and here."""
        return bool(self._memory[0])

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
                    found += self._large(link, note, incomplete.needed)
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
