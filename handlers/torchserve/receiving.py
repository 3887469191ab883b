"""How a worker reads from TorchServe's frontend: as much as is there at once, instead of each field by calls of its own.

TorchServe's worker asks the socket for four bytes, then for as many as these say, and so on: some thirty system calls a
request (otf_message_handler, 0.12). For workers that read and answer in turns; the asynchronous service also waits for the
socket to be readable, and must not find that what it waits for was read already.
"""

import logging
import sys
from typing import Any

logger = logging.getLogger(__name__)

_LEAST, _MOST = 1 << 16, 1 << 20  # bytes asked for at once


class Buffered:
    """Takes the place of TorchServe's function that reads so many bytes of a connection."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._place = 0

    def __call__(self, connection: Any, length: int) -> bytearray:
        """The next `length` bytes. Ends the process where the frontend has gone, as TorchServe's own does."""
        data = self._data
        while len(data) - self._place < length:
            missing = length - (len(data) - self._place)
            part = connection.recv(min(max(_LEAST, missing), _MOST))
            if not part:
                logger.info("Frontend disconnected.")
                sys.exit(0)
            if self._place:
                del data[: self._place]
                self._place = 0
            data += part
        found = data[self._place : self._place + length]
        self._place += length
        if self._place == len(data):
            data.clear()
            self._place = 0
        return found


def buffer_reads() -> None:
    """Let this process's worker read so. To be called while TorchServe initializes the handler; does nothing outside."""
    handler = sys.modules.get("ts.protocol.otf_message_handler")
    if handler is not None:
        handler._retrieve_buffer = Buffered()  # type: ignore[attr-defined]
