"""The life of a batch in a worker: decode → encode → run → answer, each request on its own account.

TaskHandler is what every task shares: an archive is checked, opened and tried before it serves. BatchHandler answers the
batches that TorchServe makes; `handlers.tasks.text.generation` makes its own, token by token. What an input is, only the
task's kind of input knows (handlers.inputs); what computes, only the session class that the archive's entry names.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from handlers.batching import plan
from handlers.cpu import host_warnings, threads_per_worker
from handlers.errors import BadRequest, UnsoundArchive
from handlers.examples import check_examples, read_examples
from handlers.gpu import gpu_of, use_gpu
from handlers.inputs.base import Input
from handlers.inputs.checks import Parameter
from handlers.manifest import SERVING, find_damage, read_manifest, read_timings, timings_damage
from handlers.protocols import forms
from handlers.protocols.huggingface import forms as hf
from handlers.protocols.openai.reply import openai_error
from handlers.protocols.reply import JSON, body_of, error_body, to_json
from handlers.protocols.request import Parse, Request, Spec
from handlers.runtimes.base import Session
from handlers.torchserve.batches import answer_batch
from handlers.torchserve.receiving import buffer_reads
from handlers.torchserve.service import Service
from handlers.torchserve.standby.process import Standby, is_asynchronous, take_over
from handlers.torchserve.standby.unanswered import frontend_socket
from handlers.tracing import Tracer, open_tracer

logger = logging.getLogger(__name__)

Value = TypeVar("Value")  # one input of the task, see handlers.inputs.base

MAX_ITEMS = 1024  # of one request: windows of a long text, labels to try, texts to rank


class TaskHandler(ABC, Generic[Value]):
    """One handler class per task derives from this; TorchServe calls initialize once and handle per batch.

    runtime: the session class, which the archive's entry sets: `class Handler(TheTask): runtime = TheSession`.
    parameters: what a request may set, beside what the kind of input allows. serving: serving.json as read.
    input: the kind of input, made by `make_input`. digest, version: the archive's, once its files were checked. model_name:
    under which TorchServe serves it. tracer: where requests are traced and TorchServe makes the batches.
    """

    runtime: Callable[..., Any]
    parameters: ClassVar[dict[str, Parameter]]
    serving: dict[str, Any]
    input: Input[Value, Any]
    digest: str | None = None
    version: str = ""
    model_name: str = ""
    tracer: Tracer | None = None

    @abstractmethod
    def make_input(self, folder: Path) -> Input[Value, Any]:
        """The kind of input of the extracted archive at `folder`; `serving` is read already."""

    @abstractmethod
    def load(self, folder: Path, threads: int) -> None:
        """Open the session on the extracted archive at `folder`, with `threads` threads for one run."""

    @abstractmethod
    def respond(self, inputs: Sequence[Value], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """Answers in this process, through the same encoding and runs as served ones.

        Args:
            inputs: [n] inputs. parameters: a request's, or None.
        Returns: [n] answers as JSON values.
        Raises: BadRequest for inputs or parameters that a request may not have; what the runtime raises.
        """

    @abstractmethod
    def compare(self, stored: Any, found: Any) -> float:
        """How far two answers of one input lie apart, as a share of the largest stored number; inf for another form."""

    @property
    def full_parameters(self) -> dict[str, Any]:
        """The request parameters under which an answer leaves nothing out."""
        return {}

    def initialize(self, context: Any) -> None:
        """TorchServe's entry.

        Args:
            context: TorchServe's own.
        Raises: RuntimeError with one full sentence for any failure: that is what it logs.
        """
        config = context.model_yaml_config or {}
        workers = config.get("minWorkers")
        try:
            gpu = gpu_of(context.system_properties)
            if gpu is not None:
                use_gpu(gpu)
            threads = self.threads_of(threads_per_worker(workers), config.get("deviceType", "cpu"))
            self.open(Path(context.system_properties["model_dir"]), threads=threads)
        except RuntimeError:
            raise
        except Exception as error:
            raise UnsoundArchive(f"the archive {context.model_name!r} cannot be loaded: {error!r}") from error

    def threads_of(self, cores: int, device: str) -> int:
        """Threads for one run in a worker that has so many cores. device: TorchServe's word, "cpu" or "gpu"."""
        return cores

    def open(self, folder: Path, *, threads: int, trust_files: bool = False) -> None:
        """Load an extracted archive, after checking every digest, and answer its examples once.

        Args:
            folder: the archive. threads: for one run of the model.
            trust_files: skip the digests and the stored answers (a build that has not written them yet).
        Raises: UnsoundArchive saying what is damaged, missing on this host, or answered otherwise than stored.
        """
        if not trust_files:
            manifest = read_manifest(folder)
            damage = find_damage(folder, manifest) + timings_damage(folder)
            if damage:
                raise UnsoundArchive("the archive is damaged: " + "; ".join(damage))
            self.digest, self.version = manifest["content_sha256"], manifest["version"]
        self.serving = json.loads((folder / SERVING).read_text())
        self.begin(folder, threads, trust_files)

    def begin(self, folder: Path, threads: int, trust_files: bool) -> None:
        """Open what `serving` describes, and answer the examples; arguments as `open` has them."""
        self.input = self.make_input(folder)
        self.load(folder, threads)
        if not trust_files:
            for warning in host_warnings(self.serving["session"], read_timings(folder)["host"]["isa"]):
                logger.warning(warning)
            differences = check_examples(self, self.examples(folder), self.serving["tolerance"])
            if differences:
                raise UnsoundArchive("the archive's own examples are answered wrongly here: " + "; ".join(differences))

    @property
    def facts(self) -> dict[str, Any]:
        """What the span of every request says of the model."""
        return {
            "marpress.model.name": self.model_name,
            "marpress.model.version": self.version,
            "marpress.task": self.serving.get("task", ""),
            "marpress.runtime": self.serving["session"].get("runtime", ""),
        }

    def open_tracer(self) -> Tracer | None:
        """What traces requests in this process, which answers them; None where nothing does."""
        return open_tracer(lambda: self.facts)

    def examples(self, folder: Path) -> list[dict[str, Any]]:
        """The stored examples, with the answers that what is opened has to give."""
        return read_examples(folder)


@dataclass
class Ran:
    """outputs: one an item, in order; None for those that failed. failed: their positions, with why.

    size: sum of the items' sizes. computed: the same with the padding that was computed for them.
    """

    outputs: list[np.ndarray | None]
    failed: dict[int, Exception] = field(default_factory=dict)
    size: int = 0
    computed: int = 0


@dataclass(frozen=True)
class Found(Generic[Value]):
    """One input with what the model gave for it.

    Args:
        value: the input. items: what was run for it, at least one.
        outputs: one an item: the session's output row for it, padding included, as `keep` leaves it.
    """

    value: Value
    items: Sequence[Any]
    outputs: Sequence[np.ndarray]


class BatchHandler(TaskHandler[Value]):
    """What comes together is run together: the items of all requests in sub-batches of like size, one pass each."""

    session: Session
    paths: ClassVar[Mapping[str, Parse]] = {}  # what OpenAI's clients and their like ask below the version
    hub_nests: ClassVar[bool] = False  # whether huggingface_hub reads one text's answer from a list of one
    streams: int = 1  # sub-batches that run at once
    makes_batches: bool = False  # whether the worker does, else TorchServe

    def initialize(self, context: Any) -> None:
        self.model_name = context.model_name
        if not is_asynchronous(context):
            super().initialize(context)
            buffer_reads()
            self.tracer = self.open_tracer()
            return
        service = Service(self, Standby(frontend_socket()), context.metrics, self.open_tracer)
        self.makes_batches = True
        take_over(service.standby, lambda: super(BatchHandler, self).initialize(context), service.run)

    def threads_of(self, cores: int, device: str) -> int:
        if not self.makes_batches or device != "cpu":
            return cores
        self.streams = cores  # one core to each: all of them on one small sub-batch would be little faster than one
        return 1

    def prepare(self, values: Sequence[Value], parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The items to run for each of [n] inputs, at least one each; windows or questions of an input are several.

        Args:
            parameters: the request's, checked.
        Raises: BadRequest for an input that the parameters forbid, naming its index.
        """
        return [(item,) for item in self.input.encode(values, parameters)]

    def keep(self, item: Any, output: np.ndarray) -> np.ndarray:
        """What of an item's output `answers` and metrics need: the rest is let go while others still run.

        Args:
            output: the session's output row for it, padding included.
        """
        return output

    @abstractmethod
    def answers(self, found: Sequence[Found[Value]], parameters: Mapping[str, Any]) -> list[Any]:
        """One request's outputs to its answers.

        Args:
            found: [n] inputs with their outputs. parameters: the request's, checked.
        Returns: [n] answers as JSON values.
        Raises: ArithmeticError with a sentence when the outputs are no numbers.
        """

    def load(self, folder: Path, threads: int) -> None:
        streams = {"streams": self.streams} if self.streams > 1 else {}
        self.session = self.runtime(folder, self.serving["session"] | {"digest": self.digest}, threads, **streams)

    def respond(self, inputs: Sequence[Value], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        given = dict(parameters or {})
        return self.answers(self.find(inputs, given), given)

    def find(self, values: Sequence[Value], parameters: Mapping[str, Any]) -> list[Found[Value]]:
        """What the model gives for inputs, in this process.

        Args:
            values: [n] inputs. parameters: as a request's.
        Returns: [n], in order.
        Raises: BadRequest as `prepare` does; what the session raises for the first sub-batch that fails.
        """
        prepared = self.prepare(values, parameters)
        ran = self.run([item for items in prepared for item in items])
        if ran.failed:
            raise next(iter(ran.failed.values()))
        return self._found(values, prepared, ran.outputs)

    def _found(
        self, values: Sequence[Value], prepared: Sequence[Sequence[Any]], outputs: Sequence[np.ndarray | None]
    ) -> list[Found[Value]]:
        found, position = [], 0
        for value, items in zip(values, prepared, strict=True):
            mine = [output for output in outputs[position : position + len(items)] if output is not None]
            found.append(Found(value, items, mine))
            position += len(items)
        return found

    def run(self, items: Sequence[Any]) -> Ran:
        """Run what several requests ask for; a sub-batch that fails takes no other with it."""
        sizes = [self.input.size(item) for item in items]
        batches = plan(sizes, **self.serving["batching"])
        ran = Ran([None] * len(items), size=sum(sizes), computed=sum(batch.computed_tokens for batch in batches))
        for batch in batches:
            members = list(batch.members)
            output, broken = self.run_batch([items[i] for i in members], batch.length, batch.rows)
            if broken is not None or output is None:
                ran.failed |= {index: broken or RuntimeError("no output") for index in members}
                continue
            for row, index in enumerate(members):
                ran.outputs[index] = self.keep(items[index], output[row])
        return ran

    def run_batch(self, items: Sequence[Any], size: int, rows: int) -> tuple[np.ndarray | None, Exception | None]:
        """One run of the model.

        Args:
            items: [n] of size ≤ `size`, which they are padded to. rows: ≥ n, those beyond n filled.
        Returns: (the session's output [rows, …], None), or (None, why there is none).
        """
        try:
            return self.session.run(self.input.collate(items, size, rows)), None
        except Exception as error:  # the runtime failed on this sub-batch: the others are still answered
            logger.exception("a sub-batch of %d items of size %d failed", len(items), size)
            return None, error

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """A batch that TorchServe made, where it does; a request's mistake is that request's alone.

        Args:
            data: [n] requests. context: TorchServe's own, which gets each answer's status and content type.
        Returns: [n] JSON bodies.
        """
        return answer_batch(self, data, context)

    def accept(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Request, list[Sequence[Any]]]:
        """A request as it came to what it asks and the items to run for each of its inputs.

        Args:
            row, headers: as TorchServe hands them over.
        Raises: BadRequest saying what is wrong and what is allowed.
        """
        path = forms.path_of(headers)
        try:
            forms.check_path(path, self.paths, self.model_name)
            document = self.read(row, headers)
            request = forms.parse(document, path, self.paths, self._spec)
            if self.hub_nests and request.form is None and forms.is_hub(headers):
                request = replace(request, single=False)
            return request, self._prepared(request)
        except BadRequest as error:
            if path:
                error.render = openai_error
            raise

    def read(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Any:
        """What a request sends, as the forms parse it; arguments and errors as `accept` has them."""
        return forms.read(row, headers, self.input.allowed, self.input.max_bytes)

    @property
    def _spec(self) -> Spec:
        return Spec(
            decode=self.input.decode,
            parameters=self.input.parameters | self.parameters,
            max_inputs=self.serving["max_inputs"],
            allowed=self.input.allowed,
            fields=self.input.fields,
            model=self.model_name,
        )

    def _prepared(self, request: Request) -> list[Sequence[Any]]:
        self.input.check_together(request.inputs)
        prepared = self.prepare(request.inputs, request.parameters)
        items = sum(map(len, prepared))
        if items > max(MAX_ITEMS, self.serving["max_inputs"]):
            raise BadRequest(
                f"the request makes {items} runs of the model (windows, texts or labels); at most "
                f"{max(MAX_ITEMS, self.serving['max_inputs'])} are allowed: send fewer or shorter inputs"
            )
        return prepared

    def answer(
        self,
        request: Request,
        prepared: Sequence[Sequence[Any]],
        outputs: Sequence[np.ndarray | None],
        broken: Exception | None,
    ) -> tuple[int, bytes, str]:
        """(HTTP status, body, content type) of a request whose items have run.

        Args:
            prepared: the items of each input. outputs: one an item, as `keep` left it. broken: why there are none.
        """
        form = request.form
        error = error_body if form is None else form.error
        if broken is not None:
            return 500, error(500, f"the model failed on this request: {type(broken).__name__}"), JSON
        try:
            answers = self.answers(self._found(request.inputs, prepared, outputs), request.parameters)
            if form is None:
                return 200, to_json(hf.render(answers, request.single)), JSON
            tokens = sum(self.input.size(item) for items in prepared for item in items)
            return 200, *body_of(form.render(answers, tokens))
        except BadRequest as wrong:
            return wrong.code, error(wrong.code, str(wrong)), JSON
        except ArithmeticError as failed:
            return 500, error(500, str(failed)), JSON
        except Exception as failed:  # one request's answer must not cost the others theirs
            logger.exception("an answer could not be made")
            return 500, error(500, f"the answer could not be made: {type(failed).__name__}"), JSON
