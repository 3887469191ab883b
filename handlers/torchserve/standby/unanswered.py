"""Requests that a worker has not answered yet, noted in memory that outlives it: who comes after it tells their clients.

TorchServe forgets nothing in asynchronous mode: what a dead worker held stays on its list, unanswered, and the worker that
takes its place talks to the same list. The notes are a file that is mapped into memory, in a folder that names the
frontend's process and the worker's socket: a place for a request, with one letter that says how it can be answered. A
request that the dead worker had not read is not among them.
"""

import logging
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handlers.protocols.reply import JSON, error_body, event_of
from handlers.torchserve.frames import Answers

logger = logging.getLogger(__name__)

MESSAGE = "the worker died while it wrote this answer; another one has taken its place: send the request again"
_PREFIX = "marpress-unanswered"
WHOLE, STREAM, GRPC = b"w", b"s", b"g"
_FREE = b"\0"
_PLACE = 64  # bytes: the letter, the id's length, the id
_PLACES = 4096  # more requests at once than any queue lets in
_SERVED, _ALL_TOLD = range(_PLACE * _PLACES, _PLACE * _PLACES + 2)  # a byte each
_TELLING, _IN_VAIN = 1, 2  # of the latter


class Unanswered:
    """One worker's notes. Without a TorchServe around it (a build, a test) it notes nothing."""

    def __init__(self) -> None:
        path = _path()
        self._memory = _mapped(path) if path is not None else None
        self._at: dict[str, int] = {}
        self._free: list[int] = []

    def begin(self, request_id: str, rest: bool) -> None:
        """Note a request that has been read; rest: whether it came over HTTP."""
        name = request_id.encode()[: _PLACE - 2]
        if self._memory is None or not self._free:
            return
        self._at[request_id] = place = self._free.pop()
        self._memory[place + 1 : place + 2 + len(name)] = bytes([len(name)]) + name
        self._memory[place : place + 1] = WHOLE if rest else GRPC  # last: it makes the note count

    def streams(self, request_id: str) -> None:
        """Note that the status of a request over REST is sent: what follows can only be pieces."""
        if self._memory is not None and (place := self._at.get(request_id)) is not None:
            self._memory[place : place + 1] = STREAM

    def end(self, request_id: str) -> None:
        """Take the note of an answered request away."""
        if self._memory is not None and (place := self._at.pop(request_id, None)) is not None:
            self._memory[place : place + 1] = _FREE
            self._free.append(place)

    @property
    def served(self) -> bool:
        """Whether a worker has served over this socket before."""
        return self._memory is not None and self._memory[_SERVED] == 1

    def serves(self) -> None:
        """One does now."""
        if self._memory is not None:
            self._memory[_SERVED] = 1
            if self._memory[_ALL_TOLD] == _TELLING:
                self._memory[_ALL_TOLD] = 0  # the frontend has borne it

    def tell_all(self) -> bool:
        """Whether the frontend may be told that all is lost that it has given away: it has borne that the last time."""
        if self._memory is None:
            return False
        self._memory[_ALL_TOLD] = _IN_VAIN if self._memory[_ALL_TOLD] else _TELLING
        return self._memory[_ALL_TOLD] == _TELLING

    def take(self) -> list[tuple[str, bytes]]:
        """(id, letter) of what was left by the one before this; from now on the notes are this one's."""
        if self._memory is None:
            return []
        left = []
        for place in range(0, _PLACE * _PLACES, _PLACE):
            kind = self._memory[place : place + 1]
            if kind in (WHOLE, STREAM, GRPC):
                length = self._memory[place + 1]
                left.append((self._memory[place + 2 : place + 2 + length].decode("utf-8", "replace"), kind))
                self._memory[place : place + 1] = _FREE
        self._at = {}
        self._free = list(range(0, _PLACE * _PLACES, _PLACE))[::-1]
        return left


def _mapped(path: Path) -> mmap.mmap | None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with path.open("ab") as file:
            file.truncate(_ALL_TOLD + 1)
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 0)
    except OSError:
        logger.exception("unanswered requests cannot be noted: should this worker die, their clients wait in vain")
        return None


def tell_lost(link: Any, left: list[tuple[str, bytes]]) -> None:
    """Answer requests that a dead worker had read: 503.

    Args:
        link: the frontend's socket. left: as `Unanswered.take` gives them.
    """
    if left:
        logger.warning("%d requests were lost with the worker before this one: their clients are told", len(left))
    body = error_body(503, MESSAGE)
    for request_id, kind in left:
        answers = Answers()  # each by itself: one that the frontend does not know would take the others with it
        if kind == STREAM:
            answers.end(request_id, event_of(body), JSON)
        else:
            answers.add(request_id, kind == WHOLE, body, JSON, 503)
        try:
            link.sendall(answers.message())
        except OSError:
            logger.exception("a client could not be told")
            return


def _path() -> Path | None:
    """The notes: in a folder of the frontend's process, which is this one's parent, named for this worker's socket."""
    named = [
        part
        for flag in ("--sock-name", "--port")
        if flag in sys.argv
        for part in sys.argv[sys.argv.index(flag) + 1 :][:1]
    ]
    if not named:
        return None
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"{_PREFIX}-*"):
        if not _alive(old.name):
            shutil.rmtree(old, ignore_errors=True)
    return base / f"{_PREFIX}-{parent}-{started}" / named[0].replace("/", "_")


def _alive(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 4 and Path(f"/proc/{parts[2]}").exists()


def _frames() -> Iterator[Any]:
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def frontend_socket() -> Any:
    """The connection to the frontend, from the frame of TorchServe's code that initializes the handler; else None."""
    return next((frame.f_locals["cl_socket"] for frame in _frames() if "cl_socket" in frame.f_locals), None)
