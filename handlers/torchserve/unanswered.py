"""Requests that a worker has not answered yet, noted in files that outlive it: the worker after it tells their clients.

TorchServe forgets nothing in asynchronous mode: what a dead worker held stays on its list, unanswered, and the worker that
takes its place talks to the same list. One file for a request, of one letter that says how it can be answered, in a folder
that names the frontend's process and the worker's socket. A request that the dead worker had not read is not among them.
"""

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handlers.protocols.reply import JSON, error_body, event_of
from handlers.torchserve.channel import Message

logger = logging.getLogger(__name__)

MESSAGE = "the worker died while it wrote this answer; another one has taken its place: send the request again"
_PREFIX = "marpress-unanswered"
_LOADED_SECONDS = 1.0  # after the load, the frontend takes this worker's messages
_WHOLE, _STREAM, _GRPC = "w", "s", "g"


class Unanswered:
    """One worker's notes. Without a TorchServe around it (a build, a test) it notes nothing."""

    def __init__(self) -> None:
        self._folder = _folder()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def begin(self, request_id: str, rest: bool) -> None:
        """Note a request that has been read; rest: whether it came over HTTP."""
        if self._folder is not None:
            (self._folder / _safe(request_id)).write_text(_WHOLE if rest else _GRPC)

    def streams(self, request_id: str) -> None:
        """Note that the status of a request over REST is sent: what follows can only be pieces."""
        if self._folder is not None:
            (self._folder / _safe(request_id)).write_text(_STREAM)

    def end(self, request_id: str) -> None:
        """Take the note of an answered request away."""
        if self._folder is not None:
            (self._folder / _safe(request_id)).unlink(missing_ok=True)

    def answer_left(self) -> None:
        """Answer what the worker before this one left, in a thread, once the frontend listens to this one.

        To be called while TorchServe initializes the handler: its own code then holds the socket.
        """
        if self._folder is None or (socket := _socket()) is None:
            return
        left = [(path.name, path.read_text()) for path in sorted(self._folder.iterdir())]
        for name, _ in left:
            (self._folder / name).unlink(missing_ok=True)
        if left:
            threading.Thread(target=_answer, args=(socket, left), name=_PREFIX, daemon=True).start()


def _answer(socket: Any, left: list[tuple[str, str]]) -> None:
    time.sleep(_LOADED_SECONDS)
    logger.warning("%d requests were lost with the worker before this one: their clients are told", len(left))
    body = error_body(503, MESSAGE)
    for request_id, kind in left:
        try:
            if kind == _WHOLE:
                whole = Message(stream=False)
                whole.add(request_id, body, JSON, 503)
                whole.send(socket)
            last = Message(stream=False, last=True)
            last.add(request_id, {_WHOLE: b"", _STREAM: event_of(body)}.get(kind, body), JSON)
            last.send(socket)
        except OSError:
            logger.exception("a client could not be told")
            return


def _folder() -> Path | None:
    """A folder of the frontend's process, which is this one's parent, and of the socket that this worker was given."""
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


def _safe(request_id: str) -> str:
    """Request ids are the frontend's own UUIDs; whatever else comes is no path."""
    return "".join(sign if sign.isalnum() or sign == "-" else "_" for sign in request_id)[:64]


def _frames() -> Iterator[Any]:
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _socket() -> Any:
    """The connection to the frontend, from the frame of TorchServe's code that initializes the handler; else None."""
    return next((frame.f_locals["cl_socket"] for frame in _frames() if "cl_socket" in frame.f_locals), None)
