"""text-generation: prompts continued together, each joining the running batch at the next token, leaving at its own end.

TorchServe hands every request over at once (asyncCommunication, batchSize 1); the batch is the engine's.
See docs/generation.md for why, and handlers.torchserve.channel for what TorchServe makes necessary.
"""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from handlers import metrics
from handlers.base import STREAM, TaskHandler, error_body, is_rest
from handlers.errors import BadRequest, UnsoundArchive
from handlers.generation.answer import EVENTS, JSON, Answer
from handlers.generation.backend import FAILED, PROMPT_TOKENS_A_STEP, Backend, Sampling
from handlers.generation.chat import ChatTemplate
from handlers.generation.engine import Engine, Job
from handlers.generation.request import CHAT, COMPLETION, HF, HF_PARAMETERS, SEEDS, GenerationRequest, parse_generation
from handlers.inputs.text import TextInput
from handlers.protocols.payload import Parameter
from handlers.torchserve.channel import Arrivals, Message, Outbox, lock_socket
from handlers.torchserve.unanswered import Owed

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = {HF: 64, COMPLETION: 16, CHAT: None}  # where a request does not say; None: whatever room there is
WARM_SECONDS = 3.0  # most that a warm-up takes
_GRACE_SECONDS = 15.0  # beyond a deadline, for a step that takes long, before the engine counts as stuck


class TextGenerationHandler(TaskHandler):
    """serving: max_length bounds prompt and continuation together; end_ids end a text; deadline_s, max_queue bound it."""

    parameters: ClassVar[dict[str, Parameter]] = HF_PARAMETERS
    backend: Backend
    engine: Engine

    def load(self, folder: Path, threads: int) -> None:
        serving = self.serving
        chat = serving.get("chat")
        self._chat = ChatTemplate(chat["template"], chat["tokens"]) if chat else None
        self.backend = open_backend(folder, serving["session"], threads, serving["end_ids"])
        self._arrivals = Arrivals()
        self._outbox = Outbox(self._arrivals)
        self._owed = Owed()
        self.engine = Engine(
            self.backend,
            self.encoder.tokenizer,
            max_running=serving["session"]["max_running"],
            max_waiting=serving["max_queue"],
            before_step=self._arrivals.settle,
            after_step=self._outbox.flush,
        )
        self._name = ""

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self._name = context.model_name
        self._owed = Owed()
        self._owed.settle()
        # The asynchronous service copies its context for every request, and all metrics with it; nobody writes to them.
        found = context.metrics
        if found is not None:
            found.__deepcopy__ = lambda memo: found

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
        rng, ids = random.Random(0), self.encoder.tokenizer.get_vocab_size()
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
        document = {"inputs": [item.text for item in inputs], "parameters": dict(parameters or {})}
        row = {"body": json.dumps(document).encode()}
        request = self._parse(row, {}, max_inputs=max(1, len(inputs)))
        jobs = self._jobs(request)
        for job in jobs:
            job.deadline = float("inf")  # nobody waits for these: a slow host answers them as a fast one does
        self.engine.generate(jobs)
        broken = next((job for job in jobs if job.finish == FAILED), None)
        if broken is not None:
            raise ArithmeticError(broken.error or "the model failed")
        return json.loads(Answer(request, self._name).whole(jobs))

    def continuation(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest tokens behind `ids`, without the end token."""
        job = Job(ids, Sampling(max_new_tokens))
        self.engine.generate([job])
        return job.ids

    # ---- serving ------------------------------------------------------------------------------------------------------

    async def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """One request of TorchServe's asynchronous service: its last response; what comes before it goes out directly."""
        if len(data) != 1:
            raise ValueError(f"{len(data)} requests in one batch: this archive needs batchSize 1")
        lock_socket(context.cl_socket)
        self._arrivals.watch(context.cl_socket)
        request_id = context.get_request_id(0)
        self._arrivals.begin(request_id)
        self._owed.begin(request_id, is_rest(context.get_all_request_header(0)))
        try:
            return [await self._handle(data[0], context)]
        finally:
            self._arrivals.end(request_id)
            self._owed.end(request_id)

    async def _handle(self, row: Mapping[str, Any], context: Any) -> bytes:
        started = time.monotonic()
        jobs: list[Job] = []
        code = 200
        try:
            body, jobs = await self._serve(row, context)
        except BadRequest as error:
            code = error.code
            body = self._refuse(context, error.code, str(error))
        except Exception as error:  # whatever it found, the answer is this request's alone
            logger.exception("a request failed")
            code = 500
            body = self._refuse(context, 500, f"the request failed: {type(error).__name__}")
        context.set_response_header(0, STREAM, "false")
        load = self.engine.load()
        metrics.emit_generation(context.metrics, jobs, load, failed=code != 200, seconds=time.monotonic() - started)
        return body

    async def _serve(self, row: Mapping[str, Any], context: Any) -> tuple[bytes, list[Job]]:
        headers = context.get_all_request_header(0)
        rest = is_rest(headers)
        request = self._parse(row, headers)
        if not rest:  # see handlers.torchserve.channel: only a client of StreamPredictions may say so
            request = replace(request, stream=request.stream and _asks_for_stream(row))
        answer = Answer(request, self._name)
        jobs = self._jobs(request)
        last = await (self._stream(jobs[0], answer, context) if request.stream else self._whole(jobs, answer, context))
        if rest and not request.stream:
            self._send(context, last, JSON)
            return b"", jobs
        context.set_response_content_type(0, EVENTS if request.stream else JSON)
        return last, jobs

    async def _whole(self, jobs: list[Job], answer: Answer, context: Any) -> bytes:
        left = [len(jobs)]
        request_id = context.get_request_id(0)
        finished = asyncio.get_running_loop().create_future()

        def listener(job: Job, text: str) -> None:
            left[0] -= job.done
            if not left[0]:
                self._outbox.done(request_id, finished)

        await self._run(request_id, jobs, listener, finished)
        return answer.whole(jobs)

    async def _stream(self, job: Job, answer: Answer, context: Any) -> bytes:
        finished = asyncio.get_running_loop().create_future()
        request_id, socket = context.get_request_id(0), context.cl_socket
        rest = is_rest(context.get_all_request_header(0))
        pieces = [0]
        ending = [b""]

        def listener(job: Job, text: str) -> None:
            if job.done:
                ending[0] = answer.ending(job, text) if job.finish != FAILED else b""
                self._outbox.done(request_id, finished)
            elif piece := answer.piece(job, text):
                if not pieces[0] and rest:
                    self._owed.streams(request_id)
                pieces[0] += 1
                self._outbox.put(socket, request_id, piece, EVENTS)

        try:
            await self._run(request_id, [job], listener, finished)
        except BadRequest as error:
            if not pieces[0]:
                raise
            # The status is out already: the stream says itself that it broke.
            return b"data: " + error_body(error.code, str(error)) + b"\n\n"
        if not pieces[0]:
            self._send(context, ending[0], EVENTS)
            return b""
        return ending[0]

    async def _run(
        self, request_id: str, jobs: list[Job], listener: Callable[[Job, str], None], finished: "asyncio.Future[None]"
    ) -> None:
        """Until all jobs are done. BadRequest with the HTTP status where they cannot be."""
        for job in jobs:
            job.listener = listener
        if not self.engine.submit(jobs):
            here, room = self.engine.room
            raise BadRequest(f"the queue is full: {here} of {room} places are taken; try again later", 503)
        self._arrivals.end(request_id)
        try:
            await asyncio.wait_for(finished, max(job.deadline for job in jobs) - time.monotonic() + _GRACE_SECONDS)
        except TimeoutError:
            self.engine.cancel(jobs)
            raise BadRequest("the model did not answer before the request's deadline", 504) from None
        broken = next((job for job in jobs if job.finish == FAILED), None)
        if broken is not None:
            raise BadRequest(f"the model failed on this request: {broken.error}", 500)
        if not any(job.ids for job in jobs) and all(job.finish == "time" for job in jobs):
            raise BadRequest("the request's deadline passed before its first token: the server is busy", 504)

    def _parse(
        self, row: Mapping[str, Any], headers: Mapping[str, Any], max_inputs: int | None = None
    ) -> GenerationRequest:  # fmt: skip
        return parse_generation(
            row,
            headers,
            max_inputs=max_inputs or self.serving["max_inputs"],
            render=self._chat.render if self._chat else None,
            random_seed=lambda: secrets.randbelow(2**31),
        )

    def _jobs(self, request: GenerationRequest) -> list[Job]:
        texts = [TextInput(text) for text in request.prompts]
        encoded = self.encoder.encode(texts, truncate=False, special=request.style != CHAT)
        wanted = request.sampling.max_new_tokens or DEFAULT_NEW_TOKENS[request.style]
        seconds = min(self.serving["deadline_s"], request.max_time or float("inf"))
        deadline = time.monotonic() + seconds
        jobs = []
        for index, item in enumerate(encoded):
            where = "the prompt" if request.single else f"inputs[{index}]"
            count = self._new_tokens(where, item.ids, request.sampling.max_new_tokens, wanted)
            seed = (request.sampling.seed + index) % SEEDS if request.sampling.do_sample else 0
            sampling = replace(request.sampling, max_new_tokens=count, seed=seed, logprobs=request.details)
            jobs.append(Job(item.ids, sampling, request.stops, deadline))
        return jobs

    def _new_tokens(self, where: str, ids: Sequence[int], asked: int, wanted: int | None) -> int:
        """How many tokens may be written behind `ids`; BadRequest with the numbers where that is too much."""
        limit = self.serving["max_length"]
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

    def _refuse(self, context: Any, code: int, message: str) -> bytes:
        """The same error body over REST and gRPC, and the HTTP status that only REST can carry."""
        body = error_body(code, message)
        if not is_rest(context.get_all_request_header(0)):
            return body
        self._send(context, body, JSON, code)
        return b""

    def _send(self, context: Any, body: bytes, content_type: str, status: int = 200) -> None:
        """All but the end of an answer over REST."""
        message = Message(stream=status == 200)
        message.add(context.get_request_id(0), body, content_type, status)
        message.send(context.cl_socket)


def _spread(count: int) -> list[int]:
    """1 … count, so ordered that any beginning of the list is spread over all of it (by reversed bits)."""
    width = count.bit_length()
    order = sorted(range(1 << width), key=lambda number: int(f"{number:0{width}b}"[::-1], 2))
    return [number for number in order if 1 <= number <= count]


def _asks_for_stream(row: Mapping[str, Any]) -> bool:
    value = row.get("stream", b"")
    text = bytes(value).decode("ascii", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
    return text.strip().lower() in ("true", "1")


def open_backend(folder: Path, spec: Mapping[str, Any], threads: int, end_ids: Sequence[int]) -> Backend:
    """The runtime that serving.json's `session` names. UnsoundArchive says which package or device is missing."""
    runtime = spec["runtime"]
    if runtime == "openvino":
        from handlers.runtimes.openvino_genai import OpenVinoBackend

        return OpenVinoBackend(folder, spec, threads, end_ids)
    if runtime == "torch":
        from handlers.runtimes.base import require

        torch = require("torch", "torch>=2.0")
        require("transformers", spec["requirement"])
        from handlers.architecture.decoder import load_decoder
        from handlers.runtimes.torch_generation import TorchBackend

        torch.set_num_threads(threads)
        model = load_decoder(folder, spec).to(spec.get("device", "cpu")).model
        return TorchBackend(model, end_ids, spec["max_running"])
    if runtime == "vllm":
        from handlers.runtimes.vllm import VllmBackend

        return VllmBackend(folder, spec, end_ids)
    raise UnsoundArchive(f"this archive needs the runtime {runtime!r}; known: openvino, torch, vllm")
