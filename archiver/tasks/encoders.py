"""What tasks share that answer a text in one pass: inputs to batches, raw outputs to metrics, and what is served."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from archiver.data.examples import Example, read_examples
from archiver.evaluation.speed import Speed, compare_speed, sorted_batches
from archiver.tasks.base import FALLBACK_VALIDATION, Task, device_type
from archiver.tasks.workload import (
    MAX_EXAMPLES,
    TOLERANCE_FP32,
    TOLERANCE_INT8,
    Arrays,
    Batch,
    Workload,
    require_finite,
)
from handlers.inputs.text import Encoded, Encoder, TextInput

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

_COMPARED = 64
_POOL = 50  # batches are cut from pools of this many, sorted by length: little padding, and yet another mix each seed

SERVE_BATCHES = """\
  batch_size: 32                # requests that one worker gets at once
  max_batch_delay_ms: 2         # a lone request waits this long for company"""


class EncoderTask(Task):
    """A task whose answer to a text (or a pair) is one row of numbers.

    Attributes:
        labels: what a label is: "class" (an id or name, several where the model is multi-label) or "score" (a number).
    """

    labels: ClassVar[Literal["class", "score"]] = "class"
    starter_serve = SERVE_BATCHES

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        columns = None if where == FALLBACK_VALIDATION else recipe.data.columns
        return list(
            read_examples(
                where, columns, labels=self.labels, id2label=facts.id2label or None, multi_label=facts.multi_label
            )
        )

    def load(
        self, recipe: Recipe, source: ModelSource, facts: ModelFacts, validation: list[Any], train: list[Any]
    ) -> EncoderWorkload:
        from archiver.models.load import load_model
        from handlers.architecture.encoder import EncoderWithHead

        model = load_model(source, self.auto_class)
        module = EncoderWithHead(model, self.pooling(facts))
        original = copy.deepcopy(module).eval()
        inputs = self.inputs(validation)
        tokenizer = _tokenizer((source.path / "tokenizer.json").read_bytes(), recipe, facts.pad_token_id)
        reference = raw_outputs(original, tokenizer, inputs)
        return EncoderWorkload(
            self, recipe, source, facts, validation, model, module, original, train, inputs, reference
        )

    def pooling(self, facts: ModelFacts) -> str | None:
        """How token vectors become one; None where the model's own head does it."""
        return None

    def inputs(self, examples: Sequence[Example]) -> list[TextInput]:
        """What the model sees of examples."""
        return [TextInput(example.text, example.text_pair) for example in examples]

    @abstractmethod
    def metrics_of(
        self,
        outputs: np.ndarray,
        reference: np.ndarray,
        inputs: Sequence[TextInput],
        examples: Sequence[Example],
        facts: ModelFacts,
    ) -> dict[str, float]:
        """The task's metrics.

        Args:
            outputs, reference: [n, width] float32, of the model as it is now and of the original, for `inputs`.
        """

    @abstractmethod
    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        """What serving.json says of how a row of numbers becomes an answer."""

    def server_config(self, serve: ServeSpec) -> dict[str, Any]:
        """TorchServe's settings. Without minWorkers it starts one worker per core of the container."""
        config: dict[str, Any] = {}
        if serve.workers != "auto":
            config |= {"minWorkers": serve.workers, "maxWorkers": serve.workers}
        return config | {
            "batchSize": serve.batch_size,
            "maxBatchDelay": serve.max_batch_delay_ms,
            "responseTimeout": 60,
            "startupTimeout": 120,
            "deviceType": device_type(serve.device),
        }


@dataclass
class EncoderWorkload(Workload):
    """A workload whose module gives one row of numbers for an input.

    Attributes:
        task: its EncoderTask. train: training examples, as read.
        inputs: what is measured on. reference: the original's raw outputs on them, [n, width] float32.
    """

    task: EncoderTask
    examples: list[Example]
    train: list[Example] = field(default_factory=list)
    inputs: list[TextInput] = field(default_factory=list)
    reference: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def tokenizer(self) -> Encoder:
        """The tokenizer of the model as it is now."""
        return _tokenizer(self.tokenizer_json, self.recipe, self.pad_id)

    def metrics(self, outputs: np.ndarray) -> dict[str, float]:
        """The task's metrics of raw outputs on `inputs`, against the labels and the original's outputs."""
        require_finite(outputs)
        return self.task.metrics_of(outputs, self.reference, self.inputs, self.examples, self.facts)

    def measure(self) -> dict[str, float]:
        return self.metrics(raw_outputs(self.module, self.tokenizer, self.inputs))

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return self.metrics(self.reference)

    def measure_served(self, handler: Any, way: Any, folder: Path) -> dict[str, float]:
        return self.metrics(handler.predict(self.inputs))

    def calibration_batches(self, samples: int) -> list[Batch]:
        tokenizer = self.tokenizer
        inputs = self.task.inputs(self.train[:samples])[:samples]
        return [self._tensors(tokenizer.pad([item], len(item.ids))) for item in tokenizer.encode(inputs)]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        import torch

        tokenizer = self.tokenizer
        encoded = tokenizer.encode(self.task.inputs(self.train))
        labels = self._labels() if self.task.learns_labels else None
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size * _POOL):
            pool = sorted(order[start : start + batch_size * _POOL], key=lambda i: len(encoded[i].ids))
            for first in range(0, len(pool), batch_size):
                members = pool[first : first + batch_size]
                rows = [encoded[i] for i in members]
                batch = self._tensors(tokenizer.pad(rows, len(rows[-1].ids)))
                batches.append(batch | ({"labels": labels[members]} if labels is not None else {}))
        return batches

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(repr(self.train).encode()).hexdigest()

    def speed_batches(self) -> list[Arrays]:
        return list(sorted_batches(self.inputs, self.tokenizer))

    def original_speed_batches(self) -> list[Arrays]:
        tokenizer = _tokenizer(self.tokenizer_bytes, self.recipe, self.facts.pad_token_id)
        return list(sorted_batches(self.inputs, tokenizer))

    def items_of(self, batch: Any) -> int:
        return len(batch["input_ids"])

    def speed(self, handler: Any) -> Speed:
        return compare_speed(
            self.run_of(self.original),
            handler.session.run,
            self.original_speed_batches(),
            compressed_batches=self.speed_batches(),
            count=self.items_of,
        )

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.examples), "max_length": self.recipe.serve.max_length}

    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "max_length": self.recipe.serve.max_length,
            "pad_id": self.pad_id,
            "tolerance": TOLERANCE_INT8 if session["int8"] else TOLERANCE_FP32,
            **self.task.answer_settings(self.facts),
        }

    def choose_examples(self, handler: Any) -> tuple[list[TextInput], dict[str, Any]]:
        """Validation inputs, or the recipe's own file of texts where validation data must not travel."""
        wanted = self.recipe.serve.examples
        if not isinstance(wanted, Path):
            return self.inputs[:wanted], {}
        found = read_examples(wanted, {"text": 0} if wanted.suffix == ".tsv" else None, labels=self.task.labels)
        return [TextInput(example.text, example.text_pair) for example in found][:MAX_EXAMPLES], {}

    def compared(self, examples: Sequence[Any]) -> Sequence[TextInput]:
        """Up to 64 of all inputs."""
        return self.inputs[:: -(-len(self.inputs) // _COMPARED)]

    def _tensors(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        import torch

        names = arrays if self.module.takes_type_ids else ("input_ids", "attention_mask")
        return {name: torch.from_numpy(arrays[name]) for name in names}

    def _labels(self) -> torch.Tensor | None:
        """[n] ids or numbers, or [n, labels] of zeros and ones; None when some training example has no label."""
        import torch

        found: list[Any] = [example.label for example in self.train]
        if any(label is None for label in found):
            return None
        if self.facts.multi_label:
            labels = torch.zeros(len(found), self.facts.num_labels)
            for row, ids in enumerate(found):
                labels[row, list(ids if isinstance(ids, tuple) else (ids,))] = 1.0
            return labels
        return torch.tensor(found, dtype=torch.float32 if self.facts.num_labels == 1 else torch.int64)


def _tokenizer(tokenizer_json: bytes, recipe: Recipe, pad_id: int) -> Encoder:
    return Encoder(tokenizer_json, max_length=recipe.serve.max_length, pad_id=pad_id)


def raw_outputs(module: torch.nn.Module, tokenizer: Encoder, inputs: Sequence[TextInput], rows: int = 32) -> np.ndarray:
    """What a module gives for inputs, run in batches of like length, where its weights are.

    Returns: [n, width] float32 in the order of `inputs`.
    """
    import torch

    encoded: list[Encoded] = tokenizer.encode(inputs)
    device = next(module.parameters()).device
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    outputs: list[np.ndarray] = [np.empty(0)] * len(encoded)
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            members = order[start : start + rows]
            arrays = tokenizer.pad([encoded[i] for i in members], len(encoded[members[-1]].ids))
            found = module(**{name: torch.from_numpy(value).to(device) for name, value in arrays.items()})
            for position, index in enumerate(members):
                outputs[index] = found[position].float().cpu().numpy()
    return np.stack(outputs)
