"""What tasks share whose answers are written token by token: a request, and its jobs.

TorchServe hands every request over at once (asyncCommunication); the batch is the engine's.
See docs/generation.md for why, and handlers.torchserve for what TorchServe makes necessary.
"""

import asyncio
import logging
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from handlers.base import TaskHandler
from handlers.errors import BadRequest, UnsoundArchive
from handlers.generation.backend import Stepping
from handlers.generation.engine import Engine, Job
from handlers.generation.metrics import request_measurements
from handlers.generation.tracing import trace_jobs
from handlers.protocols.continuation import FAILED, TIME
from handlers.protocols.forms import check_path, path_of, read
from handlers.protocols.kserve import forms as kserve
from handlers.protocols.reply import to_json
from handlers.protocols.request import Form, Told
from handlers.torchserve import metrics
from handlers.torchserve.conversation import Conversation, Conversations
from handlers.torchserve.requests import most_waiting
from handlers.torchserve.standby.process import Standby, is_asynchronous, take_over
from handlers.torchserve.standby.unanswered import frontend_socket

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_GRACE_SECONDS = 15.0  # beyond a deadline, for a step that takes long, before the engine counts as stuck


class JobsRenderer(Protocol):
    """One request's answer in the form that it was asked in, made of its jobs; see handlers.protocols.continuation."""

    def whole(self, found: Sequence[Any]) -> Any:
        """The JSON value to answer when all jobs are done."""
        ...

    def piece(self, found: Any, text: str, index: int = 0) -> bytes:
        """The events of a step of job `index`; empty where there is nothing to tell yet."""
        ...

    def ending(self, found: Any, text: str, index: int = 0) -> bytes:
        """The last events of job `index`."""
        ...

    def closing(self, found: Sequence[Any]) -> bytes:
        """The events behind the end of the last job."""
        ...


@dataclass(frozen=True)
class Asked:
    """A request, read.

    jobs: at least one. stream: whether the answer is sent while it is written. form: that the renderer's value is put in,
    None where it is the answer as it stands. prepare: what takes long before the jobs can run, called in another thread
    meanwhile; BadRequest where they cannot.
    """

    jobs: list[Job]
    renderer: JobsRenderer
    stream: bool = False
    form: Form | None = None
    prepare: Callable[[], None] | None = None


class EngineHandler(TaskHandler[Value]):
    """Runs a request's jobs on the engine that `load` makes."""

    backend: Any
    engine: Engine
    conversations: Conversations | None = None  # in a worker
    paths: ClassVar[Mapping[str, Any]] = {}  # what OpenAI's clients and their like ask below the version

    @property
    def adapters(self) -> Sequence[str]:
        """The names of the archive's LoRA adapters, in the order of their numbers from 1."""
        found: Sequence[str] = self.serving.get("adapters", ())
        return found

    def start(self, backend: Stepping, tokenizer: Any, *, max_running: int) -> None:
        """Make the engine that the requests share."""
        self.backend = backend
        self.engine = Engine(
            backend,
            tokenizer,
            max_running=max_running,
            max_waiting=self.serving["max_queue"],
            before_step=self._before_step,
            after_step=self._after_step,
        )

    def initialize(self, context: Any) -> None:
        self.model_name = context.model_name
        if not is_asynchronous(context):
            raise UnsoundArchive(
                f"the archive {context.model_name!r} writes its answers token by token: it needs asyncCommunication: true "
                "in its model-config.yaml, as it was built"
            )
        standby = Standby(frontend_socket())
        conversations = self.serve_by(standby, context.metrics)
        take_over(standby, lambda: super(EngineHandler, self).initialize(context), conversations.run)

    def serve_by(self, standby: Standby, cache: Any) -> Conversations:
        """Take requests from a connection from now on. cache: TorchServe's metrics cache, or None."""
        self.conversations = Conversations(standby, self.converse, self._bounds, cache, self.open_tracer)
        return self.conversations

    def _bounds(self) -> tuple[int, int]:
        """Requests that may be open at once, and bytes of their bodies that are not read yet."""
        return self.engine.room[1], most_waiting(self.input.max_bytes)

    def _before_step(self) -> None:
        if self.conversations is not None:
            self.conversations.before_step()

    def _after_step(self) -> None:
        if self.conversations is not None:
            self.conversations.after_step()

    def deadline(self, seconds: float | None) -> float:
        """time.monotonic() at which a request ends. seconds: what it asks for."""
        most: float = self.serving["deadline_s"]
        return time.monotonic() + min(most, seconds or float("inf"))

    # ---- serving ------------------------------------------------------------------------------------------------------

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """TorchServe looks for this; a worker reads its requests itself.

        Raises: RuntimeError.
        """
        raise RuntimeError("this archive takes its requests one by one: see asyncCommunication")

    async def converse(self, conversation: Conversation) -> None:
        """Answer one request, and count it."""
        started = time.monotonic()
        jobs: list[Job] = []
        refused = True
        try:
            check_path(path_of(conversation.headers), self.paths, self.model_name, self.adapters)
            jobs = await self.serve(conversation)
            refused = False
        except Told as told:
            conversation.answer(told.body)
            refused = False
        except BadRequest as error:
            conversation.refuse(error.code, str(error), error.render)
        finally:
            seconds = time.monotonic() - started
            found = request_measurements(jobs, self.engine.load(), failed=refused, seconds=seconds)
            metrics.emit(conversation.metrics, found)
            if conversation.trace is not None:
                trace_jobs(conversation.trace, conversation.jobs, conversation.arrived)

    def document(
        self, row: Mapping[str, Any], headers: Mapping[str, Any], allowed: str, max_bytes: int
    ) -> tuple[Any, Form | None]:
        """The JSON document of a request, in KServe's forms as Hugging Face's; and the form of the answer, None for that.

        Raises: BadRequest.
        """
        found = read(row, headers, allowed, max_bytes)
        return kserve.as_hugging_face(found, self.input.fields) if kserve.recognises(found) else (found, None)

    @abstractmethod
    async def serve(self, conversation: Conversation) -> list[Job]:
        """Answer one request.

        Returns: the jobs that were run for it.
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
        latest = time.monotonic() + conversation.patience
        for job in jobs:
            job.listener = listener
            job.deadline = min(job.deadline, latest)
        if not self.engine.submit(jobs):
            here, room = self.engine.room
            raise BadRequest(f"the queue is full: {here} of {room} places are taken; try again later", 503)
        conversation.jobs += jobs
        conversation.wait()
        try:
            await asyncio.wait_for(finished, max(job.deadline for job in jobs) - time.monotonic() + _GRACE_SECONDS)
        except TimeoutError:
            self.engine.cancel(jobs)
            raise BadRequest("the model did not answer before the request's deadline", 504) from None
        broken = next((job for job in jobs if job.finish == FAILED), None)
        if broken is not None:
            if conversation.trace is not None:  # the engine, which serves all, has told of it without a name
                logger.error("the model failed on a request: %s", broken.error)
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
        if asked.prepare is not None:
            asked.prepare()
        for job in asked.jobs:
            job.deadline = float("inf")  # nobody waits for these: a slow host answers them as a fast one does
        self.engine.generate(asked.jobs)
        broken = next((job for job in asked.jobs if job.finish == FAILED), None)
        if broken is not None:
            raise ArithmeticError(broken.error or "the model failed")
        return asked.renderer.whole(asked.jobs)

    async def serve(self, conversation: Conversation) -> list[Job]:
        asked = self.read(conversation.row, conversation.headers)
        conversation.form = asked.form
        streams = asked.stream and conversation.may_stream()
        conversation.has_read()
        if asked.prepare is not None:
            conversation.wait()  # the steps of others go on
            await asyncio.to_thread(asked.prepare)
        if streams:
            await self._stream(asked.jobs, asked.renderer, conversation)
        else:
            await self._whole(asked, conversation)
        return asked.jobs

    async def _whole(self, asked: Asked, conversation: Conversation) -> None:
        jobs = asked.jobs
        left = [len(jobs)]
        finished = asyncio.get_running_loop().create_future()

        def listener(job: Job, text: str) -> None:
            left[0] -= job.done
            if not left[0]:
                conversation.resolve(finished)

        await self._run(jobs, listener, finished, conversation)
        value = asked.renderer.whole(jobs)
        if asked.form is not None:
            value = asked.form.render(value, sum(len(job.prompt) for job in jobs))
        conversation.answer(to_json(value))

    async def _stream(self, jobs: list[Job], renderer: JobsRenderer, conversation: Conversation) -> None:
        finished = asyncio.get_running_loop().create_future()
        place = {id(job): index for index, job in enumerate(jobs)}
        left = [len(jobs)]
        ending = [b""]

        def listener(job: Job, text: str) -> None:
            index = place[id(job)]
            if not job.done:
                piece = renderer.piece(job, text, index)
            else:
                piece = renderer.ending(job, text, index) if job.finish != FAILED else b""
                left[0] -= 1
                if not left[0]:
                    ending[0] = piece + renderer.closing(jobs)
                    conversation.resolve(finished)
                    return
            if piece:
                conversation.piece(piece)

        await self._run(jobs, listener, finished, conversation)
        conversation.finish_stream(ending[0])


@contextmanager
def in_its_form(form: Form | None) -> Iterator[None]:
    """Inside, a request that is refused is told so in its own form. form: None for Hugging Face's."""
    try:
        yield
    except BadRequest as error:
        error.render = error.render or (None if form is None else form.error)
        raise


def random_seed() -> int:
    """The seed of a request that names none."""
    return secrets.randbelow(2**31)
