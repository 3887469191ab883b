"""What a worker sends to the frontend, in memory that outlives the process that sends it: another can finish the message.

A message goes through a pipe that all processes of the worker share, and from there into the socket (splice(2)). What the
kernel has not moved is still in the pipe, so that after a death at any moment it is known, to the byte, what was sent.
Where that cannot be done, and for a message that has no room here, `lost` says that a message is on its way: of a process
that died then nobody knows how much it had sent.
"""

import array
import errno
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Sequence

from handlers.torchserve.standby.shared import SIZE, Shared

_LENGTH, _IDS, _PUT, _AIM, _LOST = range(5)  # of the numbers


class Outbox:
    """One message at a time, on its way.

    Args:
        size: bytes kept here, of a message and the ids of its requests.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._shared = Shared(size)
        self._numbers, self._data = self._shared.numbers, self._shared.data
        self._out, self._in = os.pipe()
        self._most = fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ) if sys.platform == "linux" else 0

    @property
    def lost(self) -> bool:
        """Whether nobody knows what was sent."""
        return bool(self._numbers[_LOST])

    def send(self, link: socket.socket, message: bytes, ids: Sequence[str]) -> None:
        """Send a message; it counts as on its way until `done`.

        Args:
            link: the connection to the frontend, blocking. ids: of the requests that the frontend forgets with it.
        """
        names = "\n".join(ids).encode()
        if not self._most or len(message) + len(names) > len(self._data):
            self._plainly(link, message)
            return
        self._data[: len(message)] = message
        self._data[len(message) : len(message) + len(names)] = names
        self._numbers[_IDS] = len(names)
        self._numbers[_PUT] = self._numbers[_AIM] = 0
        self._numbers[_LENGTH] = len(message)  # last: it makes the message count
        self._push(link, 0)

    def done(self) -> None:
        """It is sent, and that is noted wherever it has to be."""
        length, self._numbers[_LENGTH] = self._numbers[_LENGTH], 0
        self._shared.give_back(length)

    def finish(self, link: socket.socket) -> set[str]:
        """Send the rest of what a dead process was sending.

        Returns: the ids of the requests that it answered; none where it was sending nothing.
        """
        length = self._numbers[_LENGTH]
        if not length:
            return set()
        left = _readable(self._out)
        if left:
            self._numbers[_PUT] = self._numbers[_AIM]
        self._push(link, left)
        names = bytes(self._data[length : length + self._numbers[_IDS]]).decode()
        self.done()
        return set(filter(None, names.split("\n")))

    def _push(self, link: socket.socket, left: int) -> None:
        """left: bytes that are in the pipe."""
        length = self._numbers[_LENGTH]
        while True:
            while left:
                try:
                    left -= os.splice(self._out, link.fileno(), left)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._most = 0  # there are kernels that cannot do it
                    self._numbers[_LOST] = 1
                    self._plainly(link, os.read(self._out, left) + bytes(self._data[self._numbers[_PUT] : length]))
                    return
            place = self._numbers[_PUT]
            if place == length:
                return
            end = min(length, place + self._most)
            self._numbers[_AIM] = end
            left = os.write(self._in, self._data[place:end])
            self._numbers[_PUT] = end

    def _plainly(self, link: socket.socket, message: bytes) -> None:
        self._numbers[_LOST] = 1
        link.sendall(message)
        self._numbers[_LOST] = 0


def _readable(end: int) -> int:
    """Bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, count)
    return count[0]
