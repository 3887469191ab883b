"""The life of a batch in a worker: decode → encode → run → answer, each request on its own account.

TaskHandler is what every task shares: an archive is checked, opened and tried before it serves. BatchHandler answers the
batches that TorchServe makes; `handlers.tasks.text.generation` makes its own, token by token.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from handlers import metrics
from handlers.cpu import threads_per_worker
from handlers.errors import BadRequest, UnsoundArchive
from handlers.examples import check_examples, read_examples
from handlers.inputs.text import Encoder, TextInput
from handlers.manifest import SERVING, find_damage, read_manifest, read_timings, timings_damage
from handlers.protocols.payload import Parameter, Request, parse
from handlers.runtimes.base import host_warnings, required

logger = logging.getLogger(__name__)

STREAM = "ts_stream_next"  # TorchServe's response header: "true" where more follows, "false" at a stream's end

REASONS = {400: "Bad Request", 500: "Internal Server Error", 503: "Service Unavailable", 504: "Gateway Timeout"}


@dataclass
class Ran:
    """outputs: one an item, in order, sliceable. failed: positions of items that failed, with why.

    tokens: read and written, of all items; computed_tokens: the same with the padding that was computed for them
    """

    outputs: Any
    failed: dict[int, Exception] = field(default_factory=dict)
    tokens: int = 0
    computed_tokens: int = 0


class TaskHandler(ABC):
    """One handler class per task derives from this; TorchServe calls initialize once and handle per batch.

    serving: serving.json as read. session: what runs the model, made by `load`.
    """

    parameters: ClassVar[dict[str, Parameter]]
    common_parameters: ClassVar[dict[str, Parameter]] = {}
    session: Any

    @abstractmethod
    def load(self, folder: Path, threads: int) -> None:
        """Open the session."""

    @abstractmethod
    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """The JSON answers of `inputs` in order, through the same encoding and runs as served ones."""

    def initialize(self, context: Any) -> None:
        """TorchServe's entry: any failure becomes a RuntimeError with one full sentence, which is what it logs."""
        config = context.model_yaml_config or {}
        workers = config.get("minWorkers")
        try:
            self.open(Path(context.system_properties["model_dir"]), threads=threads_per_worker(workers))
        except RuntimeError:
            raise
        except Exception as error:
            raise UnsoundArchive(f"the archive {context.model_name!r} cannot be loaded: {error!r}") from error

    def open(self, folder: Path, *, threads: int, trust_files: bool = False) -> None:
        """Load the extracted archive at `folder`, after checking every digest, and answer its examples once.

        trust_files: skip the digests and the stored answers (a build that has not written them yet).
        """
        if not trust_files:
            damage = find_damage(folder, read_manifest(folder)) + timings_damage(folder)
            if damage:
                raise UnsoundArchive("the archive is damaged: " + "; ".join(damage))
        self.serving = json.loads((folder / SERVING).read_text())
        self.encoder = Encoder(
            folder / "tokenizer.json",
            max_length=self.serving["max_length"],
            pad_id=self.serving["pad_id"],
            requirement=required(folder, "tokenizers"),
        )
        self.load(folder, threads)
        if not trust_files:
            for warning in host_warnings(self.serving["session"], read_timings(folder)["host"]["isa"]):
                logger.warning(warning)
            differences = check_examples(self, read_examples(folder), self.serving["tolerance"])
            if differences:
                raise UnsoundArchive("the archive's own examples are answered wrongly here: " + "; ".join(differences))


class BatchHandler(TaskHandler):
    """What comes together is run together."""

    @abstractmethod
    def items(self, request: Request) -> list[Any]:
        """What is to be run for a request, one an input. BadRequest says what is wrong with it."""

    @abstractmethod
    def run(self, items: Sequence[Any]) -> Ran:
        """Run what several requests ask for; an item that fails takes no other with it."""

    @abstractmethod
    def answers(self, outputs: Any, request: Request) -> list[Any]:
        """One request's outputs to its JSON answers. ArithmeticError when they are no numbers."""

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """TorchServe's batch of requests to as many JSON bodies; a request's mistake is that request's alone."""
        started = time.perf_counter()
        answers: list[bytes] = [b""] * len(data)
        accepted: dict[int, tuple[Request, list[Any]]] = {}
        for index, row in enumerate(data):
            try:
                headers = context.get_all_request_header(index)
                if not is_rest(headers):
                    # A call of StreamPredictions without it ends the worker; the others do not look at it.
                    context.set_response_header(index, STREAM, "false")
                accepted[index] = self._accept(row, headers)
            except BadRequest as error:
                answers[index] = _refuse(context, index, error.code, str(error))
            except Exception as error:  # one request must not take the batch with it, whatever it found
                logger.exception("request %d of the batch failed", index)
                answers[index] = _refuse(context, index, 500, f"the request could not be read: {type(error).__name__}")
        everything = [item for _, items in accepted.values() for item in items]
        ran = self.run(everything)
        position = 0
        for index, (request, items) in accepted.items():
            span = range(position, position + len(items))
            position += len(items)
            answers[index] = self._answer(context, index, request, ran, span)
        metrics.emit(
            context.metrics,
            requests=len(data),
            errors=sum(context.get_response_status(index)[0] not in (None, 200) for index in range(len(data))),
            inputs=len(everything),
            tokens=ran.tokens,
            computed_tokens=ran.computed_tokens,
            seconds=time.perf_counter() - started,
        )
        return answers

    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        request = Request(tuple(inputs), False, dict(parameters or {}))
        ran = self.run(self.items(request))
        if ran.failed:
            raise next(iter(ran.failed.values()))
        return self.answers(ran.outputs, request)

    def _accept(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Request, list[Any]]:
        allowed = self.common_parameters | self.parameters
        request = parse(row, headers, parameters=allowed, max_inputs=self.serving["max_inputs"])
        return request, self.items(request)

    def _answer(self, context: Any, index: int, request: Request, ran: Ran, span: range) -> bytes:
        broken = next((ran.failed[i] for i in span if i in ran.failed), None)
        if broken is not None:
            return _refuse(context, index, 500, f"the model failed on this request: {type(broken).__name__}")
        try:
            answer = self.answers(ran.outputs[span.start : span.stop], request)
        except ArithmeticError as error:
            return _refuse(context, index, 500, str(error))
        context.set_response_content_type(index, "application/json")
        return to_json(answer[0] if request.single else answer)


def is_rest(headers: Mapping[str, Any]) -> bool:
    """Whether a request came over HTTP: a gRPC call brings no headers of its own, only those of its inputs."""
    return any(isinstance(value, str) for value in headers.values())


def _refuse(context: Any, index: int, code: int, message: str) -> bytes:
    """The error body, the same over REST and gRPC, and the HTTP status that only REST can carry."""
    context.set_response_status(code, REASONS[code], index)
    context.set_response_content_type(index, "application/json")
    return error_body(code, message)


def error_body(code: int, message: str) -> bytes:
    """What a mistake is answered with."""
    return to_json({"error": {"code": code, "message": message}})


def to_json(value: Any) -> bytes:
    """Compact JSON; ValueError for what is no number."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
