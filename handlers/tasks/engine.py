"""What tasks share whose answers are written token by token: a request of TorchServe's asynchronous service, and its jobs.

TorchServe hands every request over at once (asyncCommunication, batchSize 1); the batch is the engine's.
See docs/generation.md for why, and handlers.torchserve for what TorchServe makes necessary.
"""

import asyncio
import logging
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from handlers.base import TaskHandler
from handlers.errors import BadRequest
from handlers.generation.backend import Stepping
from handlers.generation.engine import Engine, Job
from handlers.generation.metrics import request_measurements
from handlers.protocols.continuation import FAILED, TIME
from handlers.protocols.reply import error_body, event_of, to_json
from handlers.torchserve import metrics
from handlers.torchserve.conversation import Conversation, Frontend

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_GRACE_SECONDS = 15.0  # beyond a deadline, for a step that takes long, before the engine counts as stuck


class JobsRenderer(Protocol):
    """One request's answer in the form that it was asked in, made of its jobs; see handlers.protocols.continuation."""

    def whole(self, found: Sequence[Any]) -> Any:
        """The JSON value to answer when all jobs are done."""
        ...

    def piece(self, found: Any, text: str) -> bytes:
        """The events of a step; empty where there is nothing to tell yet."""
        ...

    def ending(self, found: Any, text: str) -> bytes:
        """The last events of a stream."""
        ...


@dataclass(frozen=True)
class Asked:
    """A request, read. jobs: at least one. stream: whether the answer of the only job is sent while it is written."""

    jobs: list[Job]
    renderer: JobsRenderer
    stream: bool = False


class EngineHandler(TaskHandler[Value]):
    """Runs a request's jobs on the engine that `load` makes."""

    backend: Any
    engine: Engine
    model_name: str = ""

    def start(self, backend: Stepping, tokenizer: Any, *, max_running: int) -> None:
        """Make the engine that the requests share."""
        self.backend = backend
        self._frontend = Frontend()
        self.engine = Engine(
            backend,
            tokenizer,
            max_running=max_running,
            max_waiting=self.serving["max_queue"],
            before_step=self._frontend.before_step,
            after_step=self._frontend.after_step,
        )

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.model_name = context.model_name
        self._frontend.attach(context)

    def deadline(self, seconds: float | None) -> float:
        """time.monotonic() at which a request ends. seconds: what it asks for."""
        most: float = self.serving["deadline_s"]
        return time.monotonic() + min(most, seconds or float("inf"))

    # ---- serving ------------------------------------------------------------------------------------------------------

    async def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """One request of TorchServe's asynchronous service.

        Args:
            data: one request. context: TorchServe's own of it.
        Returns: its last response; what comes before it goes out directly.
        Raises: ValueError for more than one request.
        """
        if len(data) != 1:
            raise ValueError(f"{len(data)} requests in one batch: this archive needs batchSize 1")
        conversation = self._frontend.begin(context)
        try:
            return [await self._handle(data[0], conversation)]
        finally:
            conversation.end()

    async def _handle(self, row: Mapping[str, Any], conversation: Conversation) -> bytes:
        started = time.monotonic()
        jobs: list[Job] = []
        code = 200
        try:
            body, jobs = await self.serve(row, conversation)
        except BadRequest as error:
            code = error.code
            body = conversation.refuse(code, str(error))
        except Exception as error:  # whatever it found, the answer is this request's alone
            logger.exception("a request failed")
            code = 500
            body = conversation.refuse(code, f"the request failed: {type(error).__name__}")
        conversation.close()
        seconds = time.monotonic() - started
        found = request_measurements(jobs, self.engine.load(), failed=code != 200, seconds=seconds)
        metrics.emit(conversation.metrics, found)
        return body

    @abstractmethod
    async def serve(self, row: Mapping[str, Any], conversation: Conversation) -> tuple[bytes, list[Job]]:
        """Answer one request.

        Args:
            row: as TorchServe hands it over, like the conversation's headers.
        Returns: (the last response, the jobs that were run for it).
        Raises: BadRequest saying what is wrong and what is allowed, or why there is no answer.
        """

    async def _run(
        self,
        jobs: list[Job],
        listener: Callable[[Job, str], None],
        finished: "asyncio.Future[None]",
        conversation: Conversation,
    ) -> None:
        """Until all jobs are done. BadRequest with the HTTP status where they cannot be."""
        for job in jobs:
            job.listener = listener
        if not self.engine.submit(jobs):
            here, room = self.engine.room
            raise BadRequest(f"the queue is full: {here} of {room} places are taken; try again later", 503)
        conversation.wait()
        try:
            await asyncio.wait_for(finished, max(job.deadline for job in jobs) - time.monotonic() + _GRACE_SECONDS)
        except TimeoutError:
            self.engine.cancel(jobs)
            raise BadRequest("the model did not answer before the request's deadline", 504) from None
        broken = next((job for job in jobs if job.finish == FAILED), None)
        if broken is not None:
            raise BadRequest(f"the model failed on this request: {broken.error}", 500)
        if not any(job.ids for job in jobs) and all(job.finish == TIME for job in jobs):
            raise BadRequest("the request's deadline passed before its first token: the server is busy", 504)


class RequestHandler(EngineHandler[Value]):
    """Each request is a number of jobs that are known when it has been read; its answer is what they have written."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Asked:
        """A request to its jobs.

        Args:
            row, headers: as TorchServe hands them over.
        Raises: BadRequest saying what is wrong and what is allowed.
        """

    def run_here(self, asked: Asked) -> Any:
        """The answers in this process. ArithmeticError where the model failed."""
        for job in asked.jobs:
            job.deadline = float("inf")  # nobody waits for these: a slow host answers them as a fast one does
        self.engine.generate(asked.jobs)
        broken = next((job for job in asked.jobs if job.finish == FAILED), None)
        if broken is not None:
            raise ArithmeticError(broken.error or "the model failed")
        return asked.renderer.whole(asked.jobs)

    async def serve(self, row: Mapping[str, Any], conversation: Conversation) -> tuple[bytes, list[Job]]:
        asked = self.read(row, conversation.headers)
        if asked.stream and conversation.may_stream(row):
            return await self._stream(asked.jobs[0], asked.renderer, conversation), asked.jobs
        return await self._whole(asked.jobs, asked.renderer, conversation), asked.jobs

    async def _whole(self, jobs: list[Job], renderer: JobsRenderer, conversation: Conversation) -> bytes:
        left = [len(jobs)]
        finished = asyncio.get_running_loop().create_future()

        def listener(job: Job, text: str) -> None:
            left[0] -= job.done
            if not left[0]:
                conversation.resolve(finished)

        await self._run(jobs, listener, finished, conversation)
        return conversation.answer(to_json(renderer.whole(jobs)))

    async def _stream(self, job: Job, renderer: JobsRenderer, conversation: Conversation) -> bytes:
        finished = asyncio.get_running_loop().create_future()
        ending = [b""]

        def listener(job: Job, text: str) -> None:
            if job.done:
                ending[0] = renderer.ending(job, text) if job.finish != FAILED else b""
                conversation.resolve(finished)
            elif piece := renderer.piece(job, text):
                conversation.piece(piece)

        try:
            await self._run([job], listener, finished, conversation)
        except BadRequest as error:
            if not conversation.streaming:
                raise
            # The status is out already: the stream says itself that it broke.
            ending[0] = event_of(error_body(error.code, str(error)))
        return conversation.finish_stream(ending[0])


def random_seed() -> int:
    """The seed of a request that names none."""
    return secrets.randbelow(2**31)
