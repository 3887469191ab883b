"""TorchServe's asynchronous channel: answers leave when they are there, and every job leaves the frontend's list.

What its source (0.12, AsyncBatchAggregator, RestJob, GRPCJob) makes necessary:
- It forgets a job only at a response whose header ts_stream_next is "false". A REST response that is not a stream must
  not carry it, so a whole answer is sent as a stream of one piece and an end.
- A REST status from 400 closes the connection behind its head: an error is sent as a whole response, and the end after it
  finds the connection closed and only takes the job off the list.
- A unary gRPC call ends with its first response, and a second one would close the worker's connection; over the wire it
  looks like StreamPredictions. So gRPC gets one response, unless its inputs say `stream`, which only StreamPredictions may.
"""

import asyncio
import select
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")


class Arrivals:
    """A pause between two steps in which requests reach the engine, and answers leave it.

    OpenVINO GenAI's `step` holds Python's global interpreter lock until it is done: the thread that reads and answers waits
    for a whole step. So between two steps there is a pause, as short as it can be.
    """

    MOST = 0.02  # seconds that arrivals may hold up what runs
    QUIET = 0.001  # seconds without news that end the pause
    POLL = 0.0002

    def __init__(self) -> None:
        self._socket: Any = None
        self._busy: set[str] = set()
        self._news = 0.0

    def watch(self, found: Any) -> None:
        """The worker's socket."""
        self._socket = found

    def begin(self, request_id: str) -> None:
        """The request is being read, or answered: no step should begin."""
        self._busy.add(request_id)

    def end(self, request_id: str) -> None:
        """It waits for the engine, or has left."""
        self._busy.discard(request_id)
        self._news = time.monotonic()

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        now = time.monotonic()
        until = now + self.MOST
        while now < until:
            if self._busy or self._readable():
                self._news = now
            elif now - self._news >= self.QUIET:
                return
            time.sleep(self.POLL)
            now = time.monotonic()

    def _readable(self) -> bool:
        return self._socket is not None and bool(select.select([self._socket], [], [], 0)[0])


class Outbox(Generic[Request]):
    """What goes out after a step of the engine: pieces of streams, all in one message, then the requests that are done.

    Args:
        send: takes the pieces, each with whose it is.
    """

    def __init__(self, arrivals: Arrivals, send: Callable[[list[tuple[Request, bytes]]], None]) -> None:
        self._arrivals = arrivals
        self._send = send
        self._pieces: list[tuple[Request, bytes]] = []
        self._done: list[tuple[str, asyncio.Future[None]]] = []

    def put(self, request: Request, body: bytes) -> None:
        """Send one more piece of a stream at the next flush."""
        self._pieces.append((request, body))

    def done(self, request_id: str, future: "asyncio.Future[None]") -> None:
        """All of the request's texts are there: `future` is resolved behind the pieces."""
        self._done.append((request_id, future))

    def flush(self) -> None:
        """Send the pieces, then resolve the futures: the last response of a request follows behind its pieces."""
        pieces, self._pieces = self._pieces, []
        done, self._done = self._done, []
        try:
            if pieces:
                self._send(pieces)
        finally:
            for request_id, future in done:
                if not future.done():
                    self._arrivals.begin(request_id)
                future.get_loop().call_soon_threadsafe(_resolve, future)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
