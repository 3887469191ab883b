"""The life of a batch in an encoder's worker: decode → encode → run → answer, each request on its own account.

A subclass names its request parameters and turns one output row into one answer.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers import metrics
from handlers.batching import SubBatch, plan
from handlers.cpu import threads_per_worker
from handlers.encoding import Encoded, Encoder, TextInput
from handlers.errors import BadRequest, UnsoundArchive
from handlers.examples import check_examples, read_examples
from handlers.manifest import SERVING, find_damage, read_manifest, read_timings, timings_damage
from handlers.payload import Parameter, Request, is_bool, parse
from handlers.runtime import host_warnings, open_session, required

logger = logging.getLogger(__name__)


class EncoderHandler(ABC):
    """One handler class per task derives from this; TorchServe calls initialize once and handle per batch."""

    parameters: ClassVar[dict[str, Parameter]]
    common_parameters: ClassVar[dict[str, Parameter]] = {"truncation": Parameter(is_bool, "true or false")}

    @abstractmethod
    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        """Raw outputs [n, width] float32 to the numbers that are answered, same shape."""

    @abstractmethod
    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> Any:
        """One row of `scores` to its JSON answer."""

    # ---- loading ----------------------------------------------------------------------------------------------------

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
        self.session = open_session(folder, self.serving["session"], threads=threads)
        if not trust_files:
            for warning in host_warnings(self.serving["session"], read_timings(folder)["host"]["isa"]):
                logger.warning(warning)
            differences = check_examples(self, read_examples(folder), self.serving["tolerance"])
            if differences:
                raise UnsoundArchive("the archive's own examples are answered wrongly here: " + "; ".join(differences))

    # ---- serving ----------------------------------------------------------------------------------------------------

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """TorchServe's batch of requests to as many JSON bodies; a request's mistake is that request's alone."""
        started = time.perf_counter()
        answers: list[bytes] = [b""] * len(data)
        accepted: dict[int, tuple[Request, list[Encoded]]] = {}
        for index, row in enumerate(data):
            try:
                accepted[index] = self._accept(row, context.get_all_request_header(index))
            except BadRequest as error:
                answers[index] = _refuse(context, index, error.code, str(error))
            except Exception as error:  # one request must not take the batch with it, whatever it found
                logger.exception("request %d of the batch failed", index)
                answers[index] = _refuse(context, index, 500, f"the request could not be read: {type(error).__name__}")
        encoded = [item for _, items in accepted.values() for item in items]
        rows, failed, batches = self._run(encoded)
        position = 0
        for index, (request, items) in accepted.items():
            span = range(position, position + len(items))
            position += len(items)
            answers[index] = self._answer(context, index, request, rows, span, failed)
        metrics.emit(
            context.metrics,
            requests=len(data),
            errors=sum(context.get_response_status(index)[0] not in (None, 200) for index in range(len(data))),
            inputs=len(encoded),
            tokens=sum(len(item.ids) for item in encoded),
            computed_tokens=sum(batch.computed_tokens for batch in batches),
            seconds=time.perf_counter() - started,
        )
        return answers

    def predict(self, inputs: Sequence[TextInput]) -> np.ndarray:
        """Raw outputs [n, width] of `inputs` in order, through the same encoding and sub-batches as served ones."""
        rows, failed, _ = self._run(self.encoder.encode(inputs))
        if failed:
            raise next(iter(failed.values()))
        return rows

    def respond(self, inputs: Sequence[TextInput], parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """The JSON answers of `inputs` in order."""
        parameters = parameters or {}
        return [self.present(row, parameters) for row in self.scores(self.predict(inputs), parameters)]

    def _accept(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Request, list[Encoded]]:
        allowed = self.common_parameters | self.parameters
        request = parse(row, headers, parameters=allowed, max_inputs=self.serving["max_inputs"])
        truncate = request.parameters.get("truncation", True)
        encoded = self.encoder.encode(request.inputs, truncate=truncate)
        for index, item in enumerate(encoded):
            if len(item.ids) > self.encoder.max_length:
                raise BadRequest(
                    f"inputs[{index}] has {len(item.ids)} tokens; at most {self.encoder.max_length} are allowed "
                    "with 'truncation': false"
                )
        return request, encoded

    def _run(self, encoded: Sequence[Encoded]) -> tuple[np.ndarray, dict[int, Exception], list[SubBatch]]:
        """Outputs [n, width] in order, the positions that failed with why, and the sub-batches that were run."""
        batches = plan([len(item.ids) for item in encoded], **self.serving["batching"])
        rows: np.ndarray = np.zeros((len(encoded), 0), np.float32)
        failed: dict[int, Exception] = {}
        for batch in batches:
            members = list(batch.members)
            try:
                output = self.session.run(self.encoder.pad([encoded[i] for i in members], batch.length, batch.rows))
            except Exception as error:  # the runtime failed on this sub-batch: the others are still answered
                logger.exception("a sub-batch of %d inputs × %d tokens failed", len(members), batch.length)
                failed |= dict.fromkeys(members, error)
                continue
            if not rows.shape[1]:
                rows = np.zeros((len(encoded), output.shape[1]), np.float32)
            rows[members] = output[: len(members)]
        return rows, failed, batches

    def _answer(
        self, context: Any, index: int, request: Request, rows: np.ndarray, span: range, failed: Mapping[int, Exception]
    ) -> bytes:
        broken = next((failed[i] for i in span if i in failed), None)
        if broken is not None:
            return _refuse(context, index, 500, f"the model failed on this request: {type(broken).__name__}")
        numbers = self.scores(rows[span.start : span.stop], request.parameters)
        if not np.isfinite(numbers).all():
            return _refuse(context, index, 500, "the model's answer is not finite")
        answer = [self.present(row, request.parameters) for row in numbers]
        context.set_response_content_type(index, "application/json")
        return _json(answer[0] if request.single else answer)


def _refuse(context: Any, index: int, code: int, message: str) -> bytes:
    """The error body, the same over REST and gRPC, and the HTTP status that only REST can carry."""
    reasons = {400: "Bad Request", 500: "Internal Server Error"}
    context.set_response_status(code, reasons[code], index)
    context.set_response_content_type(index, "application/json")
    return _json({"error": {"code": code, "message": message}})


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
