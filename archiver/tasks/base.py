"""What a task declares: its metrics, data, starter recipe, handler, and how a workload of it is made."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from archiver.evaluation.speed import Speed
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

FORWARD = "forward"  # one pass through the model gives the answer
GENERATE = "generate"  # the answer is written token by token behind what was sent
SEQ2SEQ = "seq2seq"  # what was sent is read once, and the answer written token by token from it

# Where a recipe names no validation data, speed and stored examples come from the English text that CPython ships.
FALLBACK_VALIDATION = "embedded:cpython:validation"


@dataclass(frozen=True)
class Metric:
    """A number that a gate may bound.

    Args:
        higher_is_better: `max_drop` and `min` bound it; a metric that is better when lower is bounded by `max_increase`.
        needs: columns of the data that it is measured against; none where the original's answers are enough.
        lowest: the least value it can take.
    """

    higher_is_better: bool = True
    needs: tuple[str, ...] = ()
    lowest: float = 0.0


class Task(ABC):
    """One task: everything the build must know that differs between tasks.

    Subclasses set the class variables and the methods below, in one file each; `TASKS` has one instance of each. Modules of
    tasks import torch inside functions only: a recipe is checked without it.

    Attributes:
        name: a transformers task name, or ours where it has none.
        auto_class: the transformers class that loads a model for the task.
        base_only: whether the model without head and pooler is wanted; None: for AutoModel.
        input_name: the model's main input, as transformers names it; with "input_ids" a tokenizer is needed.
        architectures: endings of config.json's `architectures` that say a model was made for the task.
        execution: FORWARD, GENERATE or SEQ2SEQ: which way of a runtime serves it.
        metrics: what a gate may bound.
        headlines: metrics that say most, the first of those that were measured before all: `mixed` bounds it.
        fine: metrics by which two models of the task are told apart, the finest first.
        learns_labels: whether `loss` can be learnt from. predicts_tokens: outputs are logits of every token at each place.
        columns: names that `data.columns` may give, the first of which the data must have.
        data_suffixes: of the files that it reads. data_folders: whether a folder is data, too.
        plain_text: its data is running text, not rows.
        fallback: what speed and stored examples come from where a recipe names no validation data; None: it must name some.
        new_models: family → options dataclass, for `model: new:FAMILY`: a model that is made and trained from data.train.
        data_keys, serve_keys: keys of `data` and `serve` that only tasks which name them take.
        unit: what speed counts. batches: how it was counted, for the report.
        measured_with: the request parameters under which the metrics are measured.
        workload: "module:class" of its Workload.
        handler: the same of the serving side. packages: what its input needs on the host.
        module: "module:class" (in handlers.architecture) of the torch module that a task of one pass computes with.
        batching: how sub-batches are cut, where the kind of input wants it otherwise; see handlers.batching.plan.
        batched: whether the handler cuts what comes together into sub-batches, as serving.json's `batching` says.
        exact_products: whether weight-only models multiply with activations as they are, although a runtime is faster where
            it rounds them: an order of very many scores is told apart by small differences.
        starter: the recipe body that `init` writes. starter_serve: its lines on batches.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    base_only: ClassVar[bool | None] = None
    input_name: ClassVar[str] = "input_ids"
    architectures: ClassVar[tuple[str, ...]] = ()
    execution: ClassVar[str] = FORWARD
    metrics: ClassVar[Mapping[str, Metric]]
    headlines: ClassVar[tuple[str, ...]]
    fine: ClassVar[tuple[str, ...]]
    learns_labels: ClassVar[bool] = True
    predicts_tokens: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    data_suffixes: ClassVar[tuple[str, ...]] = (".tsv", ".csv", ".jsonl", ".ndjson", ".txt")
    data_folders: ClassVar[bool] = False
    plain_text: ClassVar[bool] = False
    fallback: ClassVar[str | None] = FALLBACK_VALIDATION
    new_models: ClassVar[Mapping[str, type]] = {}
    data_keys: ClassVar[tuple[str, ...]] = ()
    serve_keys: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "sentences"
    batches: ClassVar[str] = "length-sorted batches of 16"
    measured_with: ClassVar[Mapping[str, Any]] = {}
    workload: ClassVar[str]
    handler: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("tokenizers",)
    module: ClassVar[str] = ""
    batching: ClassVar[Mapping[str, Any]] = {}
    batched: ClassVar[bool] = True
    exact_products: ClassVar[bool] = False
    starter: ClassVar[str]
    starter_serve: ClassVar[str]

    @property
    def inspected(self) -> dict[str, Any]:
        """What `inspect_model` must know of the model that is wanted, beside its class."""
        return {"base_only": self.takes_base_alone, "input_name": self.input_name}

    @property
    def takes_base_alone(self) -> bool:
        """Whether the model is loaded without head and pooler."""
        return self.auto_class == "AutoModel" if self.base_only is None else self.base_only

    def suits(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Whether a model directory was made for the task, as far as its files say.

        Args:
            path: the directory. config: its config.json.
        """
        from archiver.models.files import architecture_of

        architecture = architecture_of(config) or ""
        if not self.architectures or not architecture.endswith(self.architectures):
            return False
        # Models of texts and of sounds have heads of one name.
        import transformers

        own = self.of_model(path).input_name
        return getattr(getattr(transformers, architecture, None), "main_input_name", own) == own

    def tokens(self, examples: Sequence[Any], recipe: Recipe, facts: ModelFacts, source: ModelSource) -> int | None:
        """About how many tokens examples have, for the forecast of a build's time; None where they are no texts."""
        if self.input_name != "input_ids" or "text" not in self.columns:
            return None
        return sum(min(recipe.serve.max_length, 4 + len(repr(example)) // 5) for example in examples)

    def measured_tokens(self, tokens: int, recipe: Recipe, facts: ModelFacts) -> int:
        """How many of the validation data's tokens are read once to measure a model."""
        return tokens

    def tokens_of_one(self, recipe: Recipe, facts: ModelFacts) -> int:
        """At most so many tokens has one example."""
        return recipe.serve.max_length

    @abstractmethod
    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        """Read one data source.

        Args:
            where: a file, "hub://…" or "embedded:…", as `data.train` or `data.validation` name it.
        Returns: its examples, at least one.
        Raises: DataError that lists every bad row.
        """

    def of_model(self, path: Path) -> Task:
        """The task as it is for one model: of several kinds of models that do the same task, the one that this is.

        Args:
            path: the model directory.
        """
        return self

    def load(
        self, recipe: Recipe, source: ModelSource, facts: ModelFacts, validation: list[Any], train: list[Any]
    ) -> Any:
        """Load the model and make the `workload` that the stages and the runtimes work on.

        Args:
            validation, train: examples, as `read` gives them; no `train` where no stage needs it.
        """
        return load_object(self.workload).load(self, recipe, source, facts, validation, train)

    @abstractmethod
    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The task's own loss, a mean over examples (or tokens), as a scalar.

        Args:
            outputs: what the workload's module gives for a training batch.
            labels: the batch's `labels`.
        """

    @abstractmethod
    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """How far outputs are from the original's, a scalar.

        Args:
            outputs, teacher: of one shape.
            mask: [rows, length], 1 for real tokens; None where inputs have no attention mask.
            temperature: softens outputs that are logits.
        """

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        """What cannot work with this model, one sentence each, beyond what every task needs."""
        return []

    def make_model(self, recipe: Recipe, folder: Path) -> None:
        """Write the untrained model directory of a recipe whose model is a `NewModel`; for tasks with `new_models`.

        Args:
            folder: exists, and is empty.
        Raises: DataError where data.train cannot be read.
        """
        raise NotImplementedError(f"{self.name} makes no models")

    def for_selection(
        self, recipe: Recipe, train: Sequence[Any], validation: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """(what a new model learns from, what its best epoch is chosen by), so that validation data takes no part in it.

        Args:
            train, validation: as `read` gives them.
        """
        raise NotImplementedError(f"{self.name} makes no models")

    def baselines(
        self, recipe: Recipe, facts: ModelFacts, train: Sequence[Any], validation: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """What simple rankings, guesses or the like reach on the validation data: name → metrics."""
        return {}

    @abstractmethod
    def server_config(self, serve: ServeSpec) -> dict[str, Any]:
        """TorchServe's model-config.yaml."""

    @abstractmethod
    def summary(self, facts: ModelFacts) -> list[str]:
        """Lines on the model for a starter recipe's comment."""

    def timings(self, speed: Speed) -> dict[str, Any]:
        """What a report of speed says beside it."""
        return {}

    def starter_body(self, facts: ModelFacts) -> str:
        """The starter recipe between its head and `serve:`."""
        return self.starter

    def starter_limits(self, facts: ModelFacts) -> str:
        """A starter recipe's lines on how large an input may be: as many tokens as the model states, else 128."""
        length = max(4, min(facts.pooling.max_seq_length or 128, facts.max_positions))
        return limit_line(length, "longer inputs are cut")


def limit_line(length: int, note: str) -> str:
    """A starter recipe's line on `max_length`."""
    return f"  max_length: {length}               # tokens; {note}"


def load_object(place: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def engine_server(serve: ServeSpec) -> dict[str, Any]:
    """TorchServe's settings: the worker gets each request at once, and batches by itself.

    One worker a model unless the recipe says otherwise, as it uses all cores.
    """
    workers = 1 if serve.workers == "auto" else serve.workers
    return {
        "minWorkers": workers,
        "maxWorkers": workers,
        "asyncCommunication": True,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "jobQueueSize": 1000,
        "responseTimeout": 600,
        "startupTimeout": 600,
        "deviceType": device_type(serve.device),
    }


def device_type(device: str) -> str:
    """TorchServe's word for a recipe's device."""
    return {"cpu": "cpu", "cuda": "gpu"}[device]


def shown_labels(names: Sequence[str], most: int = 8) -> str:
    """The first labels, each on one line whatever it holds, and how many more there are."""
    import json

    shown = ", ".join(json.dumps(name, ensure_ascii=True)[1:-1] for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
