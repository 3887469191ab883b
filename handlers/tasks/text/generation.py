"""text-generation: prompts continued together, each joining the running batch at the next token, leaving at its own end.

TorchServe hands every request over at once (asyncCommunication, batchSize 1); the batch is the engine's.
See docs/generation.md for why, and handlers.torchserve for what TorchServe makes necessary.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from handlers.base import TaskHandler
from handlers.errors import BadRequest
from handlers.generation.backend import PROMPT_TOKENS_A_STEP, Backend
from handlers.generation.chat import ChatTemplate
from handlers.generation.engine import Engine, Job
from handlers.generation.metrics import request_measurements
from handlers.inputs.checks import Parameter, checked_parameters
from handlers.inputs.text import Text, TextInput
from handlers.protocols import hf_generation
from handlers.protocols.continuation import FAILED, TIME, GenerationRequest, Renderer, Sampling
from handlers.protocols.generation import read_request
from handlers.protocols.reply import error_body, event_of, to_json
from handlers.protocols.sampling import SEEDS
from handlers.torchserve import metrics
from handlers.torchserve.conversation import Conversation, Frontend

logger = logging.getLogger(__name__)

WARM_SECONDS = 3.0  # most that a warm-up takes
_GRACE_SECONDS = 15.0  # beyond a deadline, for a step that takes long, before the engine counts as stuck


class TextGenerationHandler(TaskHandler[TextInput]):
    """Continues texts. serving: max_length bounds prompt and continuation together; end_ids end a text; deadline_s and
    max_queue bound how long a request runs and how many wait."""

    parameters: ClassVar[dict[str, Parameter]] = hf_generation.PARAMETERS
    input: Text
    backend: Backend
    engine: Engine

    def make_input(self, folder: Path) -> Text:
        return Text.open(folder, self.serving)

    def load(self, folder: Path, threads: int) -> None:
        serving = self.serving
        chat = serving.get("chat")
        self._chat = ChatTemplate(chat["template"], chat["tokens"]).render if chat else None
        self.backend = self.runtime(folder, serving["session"], threads, serving["end_ids"])
        self._frontend = Frontend()
        self.engine = Engine(
            self.backend,
            self.input.encoder.tokenizer,
            max_running=serving["session"]["max_running"],
            max_waiting=serving["max_queue"],
            before_step=self._frontend.before_step,
            after_step=self._frontend.after_step,
        )
        self._name = ""

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self._name = context.model_name
        self._frontend.attach(context)

    def open(self, folder: Path, *, threads: int, trust_files: bool = False) -> None:
        super().open(folder, threads=threads, trust_files=trust_files)
        if not trust_files:
            self.warm_up()

    def warm_up(self, seconds: float = WARM_SECONDS) -> None:
        """One step over each number of tokens that a step can have, as far as the time goes, the sizes spread evenly.

        A runtime prepares code and memory for each size that it meets anew: the first requests would wait for that, and the
        worker's memory would go on growing while it serves (by some 30 MB on a small model).
        """
        until = time.monotonic() + seconds
        rng, ids = random.Random(0), self.input.encoder.tokenizer.get_vocab_size()
        most = self.serving["max_length"] - 1
        for size in _spread(PROMPT_TOKENS_A_STEP):
            parts = [min(most, size - start) for start in range(0, size, most)]
            if len(parts) <= self.serving["session"]["max_running"]:
                prompts = [[rng.randrange(ids) for _ in range(part)] for part in parts]
                self.engine.generate([Job(prompt, Sampling(1)) for prompt in prompts])
            if time.monotonic() >= until:
                break

    # ---- in this process ----------------------------------------------------------------------------------------------

    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        given = checked_parameters(dict(parameters or {}), self.parameters)
        request, renderer = hf_generation.request_for(
            [item.text for item in inputs], given, single=False, random_seed=_random_seed
        )
        jobs = self._jobs(request)
        for job in jobs:
            job.deadline = float("inf")  # nobody waits for these: a slow host answers them as a fast one does
        self.engine.generate(jobs)
        broken = next((job for job in jobs if job.finish == FAILED), None)
        if broken is not None:
            raise ArithmeticError(broken.error or "the model failed")
        answers: list[Any] = renderer.whole(jobs)
        return answers

    @property
    def full_parameters(self) -> dict[str, Any]:
        """As many tokens as the archive says: up to where the next one could be another on another host."""
        return {"max_new_tokens": self.serving["example_tokens"], "return_full_text": False}

    def compare(self, stored: Any, found: Any) -> float:
        """0 for the same text, else inf."""
        return 0.0 if stored == found else float("inf")

    def continuation(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest tokens behind the token ids `ids`, without the end token."""
        job = Job(ids, Sampling(max_new_tokens))
        self.engine.generate([job])
        return job.ids

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
            body, jobs = await self._serve(row, conversation)
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

    async def _serve(self, row: Mapping[str, Any], conversation: Conversation) -> tuple[bytes, list[Job]]:
        request, renderer = read_request(
            row,
            conversation.headers,
            max_inputs=self.serving["max_inputs"],
            chat=self._chat,
            model=self._name,
            random_seed=_random_seed,
        )
        jobs = self._jobs(request)
        if request.stream and conversation.may_stream(row):
            return await self._stream(jobs[0], renderer, conversation), jobs
        return await self._whole(jobs, renderer, conversation), jobs

    async def _whole(self, jobs: list[Job], renderer: Renderer, conversation: Conversation) -> bytes:
        left = [len(jobs)]
        finished = asyncio.get_running_loop().create_future()

        def listener(job: Job, text: str) -> None:
            left[0] -= job.done
            if not left[0]:
                conversation.resolve(finished)

        await self._run(jobs, listener, finished, conversation)
        return conversation.answer(to_json(renderer.whole(jobs)))

    async def _stream(self, job: Job, renderer: Renderer, conversation: Conversation) -> bytes:
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

    def _jobs(self, request: GenerationRequest) -> list[Job]:
        texts = [TextInput(text) for text in request.prompts]
        encoded = self.input.encoder.encode(texts, truncate=False, special=request.special_tokens)
        seconds = min(self.serving["deadline_s"], request.max_time or float("inf"))
        deadline = time.monotonic() + seconds
        jobs = []
        for index, item in enumerate(encoded):
            asked = request.sampling.max_new_tokens
            count = self._new_tokens(request.places[index], item.ids, asked, asked or request.default_new_tokens)
            seed = (request.sampling.seed + index) % SEEDS if request.sampling.do_sample else 0
            sampling = replace(request.sampling, max_new_tokens=count, seed=seed)
            jobs.append(Job(item.ids, sampling, request.stops, deadline))
        return jobs

    def _new_tokens(self, where: str, ids: Sequence[int], asked: int, wanted: int | None) -> int:
        """How many tokens may be written behind `ids`; BadRequest with the numbers where that is too much."""
        limit: int = self.serving["max_length"]
        if not ids:
            raise BadRequest(f"{where} gives no tokens; at least one is needed")
        if len(ids) >= limit:
            raise BadRequest(
                f"{where} has {len(ids)} tokens; prompt and continuation together may have {limit}, "
                f"so that a prompt has at most {limit - 1}"
            )
        if asked and len(ids) + asked > limit:
            raise BadRequest(
                f"{where} has {len(ids)} tokens and {asked} new ones are asked for; together at most {limit} are "
                f"allowed: ask for {limit - len(ids)} or less"
            )
        return min(wanted or limit, limit - len(ids))


def _random_seed() -> int:
    return secrets.randbelow(2**31)


def _spread(count: int) -> list[int]:
    """1 … count, so ordered that any beginning of the list is spread over all of it (by reversed bits)."""
    width = count.bit_length()
    order = sorted(range(1 << width), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
    return [number for number in order if 1 <= number <= count]
