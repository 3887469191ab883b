"""A worker that makes its own batches: TorchServe hands every request over at once, and the engine never waits for company.

Each stream is a thread that leads in turn: it takes what has come from the connection and lets the next one lead; decodes
and tokenizes it beside others that do the same, chooses a sub-batch, runs it, and answers whose items have all run. What
arrives while all are busy forms the next batches. There is one thread more than the engine runs sub-batches at once: when
a run ends, the next sub-batch is prepared. (Leader and followers: Schmidt et al., Pattern languages of program design 4,
2000.) Takes the place of TorchServe's asynchronous service (ts/async_service.py, 0.12), which passes each request
through four threads.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from handlers.batching import SubBatch
from handlers.errors import BadRequest
from handlers.metrics import batch_measurements, counters, queue_measurements
from handlers.protocols.forms import refusal
from handlers.protocols.reply import JSON
from handlers.protocols.request import Told
from handlers.torchserve import metrics
from handlers.torchserve.answering import Answering
from handlers.torchserve.frames import Answers, Incoming
from handlers.torchserve.requests import most_waiting, seconds_of
from handlers.torchserve.standby.inbox import FrontendGone
from handlers.torchserve.standby.process import Standby
from handlers.tracing import Trace, Tracer, named
from handlers.waiting import Member, Queue, Waiting

logger = logging.getLogger(__name__)

_AHEAD = 1  # threads more than runs at once
_ADMITTING_SECONDS = 0.005  # of reading requests while something could run: large images take as long each


class Handler(Answering, Protocol):
    """What runs items, too."""

    streams: int
    serving: dict[str, Any]
    input: Any

    def run_batch(self, items: Sequence[Any], size: int, rows: int) -> tuple[np.ndarray | None, Exception | None]:
        """One run of the model, or why it failed."""
        ...

    def keep(self, item: Any, output: np.ndarray) -> np.ndarray:
        """What of an item's output is needed further."""
        ...


class Service:
    """Answers what comes over one connection.

    Args:
        handler: opened before `run`. cache: TorchServe's metrics cache.
        open_tracer: called where requests are answered, once; see handlers.tracing.
    """

    def __init__(
        self, handler: Handler, standby: Standby, cache: Any, open_tracer: Callable[[], Tracer | None] = lambda: None
    ) -> None:
        self.standby = standby
        self._handler = handler
        self._cache = cache
        self._open_tracer = open_tracer
        self._tracer: Tracer | None = None
        self._queue: Queue
        self._most_requests = 0
        self._most_bytes = 0
        self._arrived: deque[tuple[Incoming, float]] = deque()  # with when; neither decoded nor queued
        self._came = self._went = 0  # bytes of what arrived since the begin, and of what has left that list
        self._leading = threading.Lock()  # held by the one thread that reads the connection
        self._state = threading.Lock()  # of the queue, and of what is sent
        self._engine: threading.Semaphore  # as many runs at once

    def run(self) -> None:
        """Until the frontend has gone."""
        self.begin()
        for number in range(self._handler.streams + _AHEAD):
            threading.Thread(target=self._work, name=f"marpress-stream-{number}", daemon=True).start()
        self.standby.closed()
        logger.info("Frontend disconnected.")
        if self._tracer is not None:
            self._tracer.close()

    def begin(self) -> None:
        """The handler is loaded by now."""
        handler = self._handler
        self._engine = threading.BoundedSemaphore(handler.streams)
        self._queue = Queue(handler.input.size, handler.serving["batching"])
        self._most_requests = handler.serving["max_queue"]
        self._most_bytes = most_waiting(handler.input.max_bytes)
        self._tracer = self._open_tracer()
        self.standby.serves()

    def turn(self) -> None:
        """Read, choose, run, answer."""
        batch, members = self._next()
        self._run(batch, members)

    def _work(self) -> None:
        """One stream's life."""
        try:
            while True:
                self.turn()
        except (FrontendGone, ConnectionError):
            return
        except BaseException:  # nothing that is known; a successor begins anew
            logger.exception("a stream of this worker failed")
            os._exit(1)

    def _next(self) -> tuple[SubBatch, list[Member]]:
        """What to run next, read from the connection if nothing waits."""
        while True:
            if self._leading.acquire(blocking=self._idle()):
                try:
                    self._receive()
                finally:
                    self._leading.release()
            answers = Answers()
            self._admit_some(answers)
            with self._state:
                now = time.monotonic()
                self._drop_late(now, answers)
                self.standby.send(answers)
                taken = self._queue.take(now)
            if not self._idle():
                self.standby.inbox.wake()  # whoever leads waits for the connection alone
            if answers.ids:
                metrics.emit(self._cache, counters(requests=len(answers.ids), request_errors=answers.refused))
            if taken is not None:
                return taken

    def _idle(self) -> bool:
        """Whether there is nothing to do but to wait for the connection."""
        return not self._queue.open and not self._arrived

    def _receive(self) -> None:
        """What the connection holds, into the list of what has arrived; beyond the queue's bounds it is refused at once."""
        standby, answers, now = self.standby, Answers(), time.monotonic
        for incoming in standby.inbox.requests(standby.link, self._idle, self._note):
            here = len(self._queue) + len(self._arrived)
            held = self._queue.bytes + self._came - self._went
            if here > self._most_requests or (here and held + incoming.bytes > self._most_bytes):
                message = (
                    f"the queue is full: {here} requests with {held} bytes wait; at most {self._most_requests} with "
                    f"{self._most_bytes} bytes may: try again later"
                )
                self._refuse(answers, incoming, 503, message)
                if self._tracer is not None:
                    self._tracer.begin(incoming.headers, incoming.row, now()).end(503)
            else:
                self._came += incoming.bytes  # by who leads alone
                self._arrived.append((incoming, now()))
        if answers.ids:
            with self._state:
                self.standby.send(answers)
            metrics.emit(self._cache, counters(requests=len(answers.ids), request_errors=answers.refused))

    def _admit_some(self, answers: Answers) -> None:
        """Read what has arrived, beside other streams that do the same; not all of it where that takes long."""
        until = time.monotonic() + _ADMITTING_SECONDS
        while not self._queue.open or time.monotonic() < until:
            try:
                incoming, arrived = self._arrived.popleft()
            except IndexError:
                return
            with self._state:
                self._went += incoming.bytes
            self._admit(incoming, arrived, answers)

    def _note(self, incoming: Incoming) -> None:
        with self._state:
            self.standby.unanswered.begin(incoming.id, incoming.rest)

    def _admit(self, incoming: Incoming, arrived: float, answers: Answers) -> None:
        """Into the queue with it, or an answer why not."""
        trace = None if self._tracer is None else self._tracer.begin(incoming.headers, incoming.row, arrived)
        if trace is not None:
            trace.part("queue")
        with named([trace]):
            status = self._read(incoming, arrived, answers, trace)
        if trace is not None and status is not None:
            trace.part("encode")
            trace.end(status)

    def _read(self, incoming: Incoming, arrived: float, answers: Answers, trace: Trace | None) -> int | None:
        """The HTTP status of a request that is answered with that, None where it is in the queue."""
        try:
            deadline = arrived + seconds_of(incoming.headers)
            request, prepared = self._handler.accept(incoming.row, incoming.headers)
            waiting = Waiting(incoming, request, prepared, incoming.bytes, deadline, arrived, trace)
            if trace is not None:
                trace.part("encode")
            with self._state:
                self._queue.add(waiting)
            return None
        except Told as told:
            answers.add(incoming.id, incoming.rest, told.body, JSON)
            return 200
        except BadRequest as error:
            self._refuse(answers, incoming, error.code, str(error), error.render)
            return error.code
        except Exception as error:  # one request must not take the others with it, whatever it found
            logger.exception("a request failed")
            self._refuse(answers, incoming, 500, f"the request could not be read: {type(error).__name__}")
            return 500

    def _drop_late(self, now: float, answers: Answers) -> None:
        for request in self._queue.late(now):
            self._queue.remove(request)
            waited = (now - request.arrived) * 1e3
            self._refuse(
                answers, request.caller, 504, f"the request's deadline passed after {waited:.0f} ms in the queue"
            )
            if request.trace is not None:
                request.trace.part("queue")
                request.trace.end(504)

    def _run(self, batch: SubBatch, members: list[Member]) -> None:
        """Run one sub-batch and answer the requests of which nothing is left to run."""
        handler = self._handler
        items = [request.items[item] for request, item in members]
        with named(request.trace for request, _ in members), self._engine:
            started = time.monotonic()
            outputs, broken = handler.run_batch(items, batch.length, batch.rows)
        ran = time.monotonic()
        for request, _ in members:
            request.began = request.began or started
        answers = Answers()
        with self._state:
            done = self._done(members, outputs, broken)
        statuses: dict[Waiting, int] = {}
        for request, why in done.items():
            with named([request.trace]):
                status, body, content_type = handler.answer(request.request, request.prepared, request.outputs, why)
            statuses[request] = status
            answers.add(request.caller.id, request.caller.rest, body, content_type, status)
        with self._state:
            self.standby.send(answers)
        if self._tracer is not None:
            self._trace(statuses, ran, batch, len(members))
        found = batch_measurements(
            requests=len(done),
            errors=sum(status != 200 for status in statuses.values()),
            inputs=sum(len(request.prepared) for request in done),
            tokens=sum(map(handler.input.size, items)),
            computed_tokens=batch.computed_tokens,
            seconds=time.monotonic() - started,
        )
        waits = [started - request.arrived for request, item in members if not item]
        metrics.emit(self._cache, [*queue_measurements(waits, len(self._queue)), *found])

    def _trace(self, statuses: dict[Waiting, int], ran: float, batch: SubBatch, items: int) -> None:
        """The traces of requests that are answered. ran: when the last run of each ended, which was of so many items."""
        run = {"marpress.batch.size": items, "marpress.batch.length": batch.length, "marpress.batch.rows": batch.rows}
        for request, status in statuses.items():
            trace = request.trace
            if trace is None:
                continue
            trace.part("queue", request.began)
            trace.part("run", ran, run)
            trace.part("answer")
            sizes = sum(map(self._handler.input.size, request.items))
            trace.note({"marpress.inputs": len(request.prepared), "marpress.tokens": sizes})
            trace.end(status)

    def _done(
        self, members: list[Member], outputs: np.ndarray | None, broken: Exception | None
    ) -> dict[Waiting, Exception | None]:
        """The requests that these outputs complete, or that a failure ends, with why; others ended before."""
        done: dict[Waiting, Exception | None] = {}
        for row, (request, item) in enumerate(members):
            why = broken
            if outputs is not None:
                try:
                    request.outputs[item] = self._handler.keep(request.items[item], outputs[row])
                except Exception as error:  # what one request's output is must not end the worker
                    logger.exception("an output could not be kept")
                    why = error
            request.left -= 1
            if (why is not None or not request.left) and request in self._queue:
                done[request] = done.get(request) or why
        for request in done:
            self._queue.remove(request)
        return done

    @staticmethod
    def _refuse(
        answers: Answers,
        incoming: Incoming,
        code: int,
        message: str,
        render: Callable[[int, str], bytes] | None = None,
    ) -> None:
        body = refusal(incoming.headers, code, message) if render is None else render(code, message)
        answers.add(incoming.id, incoming.rest, body, JSON, code)
