"""Requests whose answers are written token by token: each read, answered in pieces or whole, ended, beside the others.

One thread reads the connection and answers, in a coroutine for each request; the engine's thread sends the pieces of
streams. Takes the place of TorchServe's asynchronous service (ts/async_service.py, 0.12), which passes each request through
four threads. See handlers.torchserve.channel for what TorchServe makes necessary.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from handlers.metrics import counters
from handlers.protocols.forms import refusal
from handlers.protocols.reply import EVENTS, JSON, event_of
from handlers.protocols.request import Form
from handlers.torchserve import metrics
from handlers.torchserve.channel import Arrivals, Outbox
from handlers.torchserve.frames import Answers, Incoming
from handlers.torchserve.requests import asks_for_stream, seconds_of
from handlers.torchserve.standby.inbox import FrontendGone
from handlers.torchserve.standby.process import Standby
from handlers.tracing import Trace, Tracer, named

logger = logging.getLogger(__name__)


class Conversations:
    """All requests of a worker.

    Args:
        answer: answers one; what it raises is logged, and its client told 500.
        bounds: (requests that may be open at once, bytes of their bodies that wait to be read); one beyond is refused.
        cache: TorchServe's metrics cache, or None.
        open_tracer: called where requests are answered, once; see handlers.tracing.
    before_step and after_step are for the engine's thread, see `Engine`.
    """

    def __init__(
        self,
        standby: Standby,
        answer: Callable[["Conversation"], Awaitable[None]],
        bounds: Callable[[], tuple[int, int]],
        cache: Any,
        open_tracer: Callable[[], Tracer | None] = lambda: None,
    ) -> None:
        self.standby = standby
        self.metrics = cache
        self.arrivals = Arrivals()
        self.outbox = Outbox[Conversation](self.arrivals, self._send_pieces)
        self.before_step = self.arrivals.settle
        self.after_step = self.outbox.flush
        self._answer = answer
        self._bounds = bounds
        self._open_tracer = open_tracer
        self.tracer: Tracer | None = None
        self.held = 0  # bytes of bodies that are not read yet
        self._open: set[asyncio.Task[None]] = set()
        self._sending = threading.Lock()

    def run(self) -> None:
        """Until the frontend has gone."""
        self.tracer = self._open_tracer()
        asyncio.run(self._serve())
        logger.info("Frontend disconnected.")
        if self.tracer is not None:
            self.tracer.close()

    async def _serve(self) -> None:
        link, gone = self.standby.link, asyncio.Event()
        self.arrivals.watch(link)
        self.standby.serves()
        asyncio.get_running_loop().add_reader(link.fileno(), self._read, gone)
        self._read(gone)  # what the worker before this one left in the inbox
        await gone.wait()

    def _read(self, gone: asyncio.Event) -> None:
        try:
            found = self.standby.inbox.requests(self.standby.link, lambda: False, self._note)
        except (FrontendGone, ConnectionError):
            gone.set()
            return
        except BaseException:  # nothing that is known; a successor begins anew
            logger.exception("the connection cannot be read")
            os._exit(1)
        for incoming in found:
            conversation = Conversation(self, incoming)
            if self._refused(conversation):
                continue
            task = asyncio.get_running_loop().create_task(self.converse(conversation))
            self._open.add(task)  # the loop itself keeps none
            task.add_done_callback(self._open.discard)

    def _note(self, incoming: Incoming) -> None:
        self.arrivals.begin(incoming.id)
        with self._sending:
            self.standby.unanswered.begin(incoming.id, incoming.rest)

    def _refused(self, conversation: "Conversation") -> bool:
        """Whether there is no room for it; then its client has been told so."""
        here, (room, most) = len(self._open), self._bounds()
        alone = self.held == conversation.bytes
        if here < room and (alone or self.held <= most):
            return False
        message = (
            f"the queue is full: {here} requests are open, and with this one {self.held} bytes wait to be read; at most "
            f"{room} with {most} bytes may: try again later"
        )
        conversation.refuse(503, message)
        conversation.has_read()
        self.arrivals.end(conversation.id)
        if conversation.trace is not None:
            conversation.trace.end(503)
        metrics.emit(self.metrics, counters(requests=1, request_errors=1))
        return True

    async def converse(self, conversation: "Conversation") -> None:
        """Answer one request, whatever it holds."""
        with named([conversation.trace]):
            await self._converse(conversation)
        if conversation.trace is not None:
            conversation.trace.end(conversation.status)

    async def _converse(self, conversation: "Conversation") -> None:
        try:
            await self._answer(conversation)
        except ConnectionError:
            logger.info("a request could not be answered: the frontend has gone")
        except Exception as error:  # whatever it found, the answer is this request's alone
            logger.exception("a request failed")
            conversation.refuse(500, f"the request failed: {type(error).__name__}")
        finally:
            conversation.has_read()
            self.arrivals.end(conversation.id)

    def end(self, conversation: "Conversation", answers: Answers) -> None:
        """Send the last of a request's answer. Does nothing where that was sent already."""
        with self._sending:
            if not conversation.ended:
                conversation.ended = True
                self.standby.send(answers)

    def _send_pieces(self, pieces: list[tuple["Conversation", bytes]]) -> None:
        """From the engine's thread: all but those of requests that ended meanwhile, which the frontend has forgotten."""
        with self._sending:
            answers = Answers()
            for conversation, body in pieces:
                if not conversation.ended:
                    answers.piece(conversation.id, body, EVENTS)
            self.standby.send(answers)


class Conversation:
    """One request.

    id: the frontend's. row, bytes: its fields and how many they have, until it `has_read`. headers: its own and its
    fields'. rest: whether it came over HTTP, else gRPC. ended: whether its last response is sent. form: that its answer is
    in, None for Hugging Face's or what is not known. status: of the answer, HTTP's. arrived: time.monotonic(). trace: None
    where nothing is traced. jobs: that the engine took in for it.
    """

    def __init__(self, all_of_them: Conversations, incoming: Incoming) -> None:
        self.id = incoming.id
        self.row = incoming.row
        self.bytes = incoming.bytes
        self.headers = incoming.headers
        self.rest = incoming.rest
        self.metrics = all_of_them.metrics
        self.ended = False
        self.form: Form | None = None
        self.status = 200
        self.jobs: list[Any] = []
        self.arrived = time.monotonic()
        tracer = all_of_them.tracer
        self.trace: Trace | None = (
            None if tracer is None else tracer.begin(incoming.headers, incoming.row, self.arrived)
        )
        self._all = all_of_them
        all_of_them.held += self.bytes
        self._pieces = 0

    @property
    def patience(self) -> float:
        """Seconds that its client waits, by its own header; inf without one. BadRequest for what is no such number."""
        return seconds_of(self.headers)

    def has_read(self) -> None:
        """Its body is needed no longer."""
        self._all.held -= self.bytes
        self.row, self.bytes = {}, 0

    def may_stream(self) -> bool:
        """Whether a stream that the request asks for can be sent: over gRPC only a client of StreamPredictions takes it."""
        return self.rest or asks_for_stream(self.row)

    def wait(self) -> None:
        """The request waits for the engine now: steps may begin."""
        self._all.arrivals.end(self.id)

    def resolve(self, future: "asyncio.Future[None]") -> None:
        """From the engine's thread: resolve `future` behind the pieces of this step."""
        self._all.outbox.done(self.id, future)

    def piece(self, body: bytes) -> None:
        """From the engine's thread: one more piece of the stream, sent behind this step."""
        if not self._pieces and self.rest:
            self._all.standby.unanswered.streams(self.id)
        self._pieces += 1
        self._all.outbox.put(self, body)

    @property
    def streaming(self) -> bool:
        """Whether pieces are out, and with them the status."""
        return self._pieces > 0

    def finish_stream(self, ending: bytes) -> None:
        """Answer with the stream's last events."""
        last = Answers()
        if not self.streaming:
            last.piece(self.id, ending, EVENTS)
            ending = b""
        last.end(self.id, ending, EVENTS)
        self._end(last)

    def answer(self, body: bytes, content_type: str = JSON) -> None:
        """Answer with one body."""
        whole = Answers()
        whole.add(self.id, self.rest, body, content_type)
        self._end(whole)

    def refuse(self, code: int, message: str, render: Callable[[int, str], bytes] | None = None) -> None:
        """Answer with the error's body, the same over REST and gRPC, and the HTTP status that only REST can carry.

        A stream that was begun has its status out already: it says itself, as its last event, that it broke.
        """
        self.status = self.status if self.ended else code
        render = render or (None if self.form is None else self.form.error)
        body = refusal(self.headers, code, message) if render is None else render(code, message)
        if self.streaming:
            self.finish_stream(event_of(body))
            return
        last = Answers()
        last.add(self.id, self.rest, body, JSON, code)
        self._end(last)

    def _end(self, answers: Answers) -> None:
        self._all.end(self, answers)
