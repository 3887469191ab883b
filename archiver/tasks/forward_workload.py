"""A recipe's model and data for a task of one pass: inputs to batches, outputs to metrics, and what is served."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archiver.evaluation.served_speed import served_rates
from archiver.evaluation.speed import MAX_ITEMS, Speed, compare_speed, sorted_batches
from archiver.state.plan import plan_of
from archiver.tasks.base import load_object
from archiver.tasks.forward import ForwardTask, Measured
from archiver.tasks.workload import (
    BATCHING,
    MAX_EXAMPLES,
    TOLERANCE_FP32,
    TOLERANCE_INT8,
    Arrays,
    Batch,
    Workload,
    require_finite,
)
from handlers.base import BatchHandler, Found
from handlers.examples import respond_fully

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.models.streamed import Streamed
    from archiver.spec import Recipe

_COMPARED = 64
_FIRM = 8  # of so many inputs one becomes a stored example of a static-int8 archive
_LARGE = 1e9  # bytes of fp32 weights from which on the original's stay in their files
_POOL = 50  # batches are cut from pools of this many, sorted by size: little padding, and yet another mix each seed


@dataclass
class ForwardWorkload(Workload):
    """A workload whose module gives the outputs of items in one pass.

    Attributes:
        task: its ForwardTask. train: training examples, as read.
        values: what requests would send to have the validation examples answered.
        reference: what the original gives for them.
        streamed: the original within `original`, whose weights stay in the model's files; None where it is in memory.
    """

    task: ForwardTask
    train: Sequence[Any] = field(default_factory=list)
    values: Sequence[Any] = field(default_factory=list)
    reference: Sequence[Found[Any]] = field(default_factory=list)
    streamed: Streamed | None = None

    @classmethod
    def load(
        cls,
        task: ForwardTask,
        recipe: Recipe,
        source: ModelSource,
        facts: ModelFacts,
        validation: list[Any],
        train: list[Any],
    ) -> Self:
        """Load the model and take what the original gives for the validation examples."""
        from archiver.models.load import load_model

        def with_head(inner: Any) -> torch.nn.Module:
            made: torch.nn.Module = load_object(task.module)(inner, **task.module_settings(facts)).eval()
            return made

        model = load_model(source, task.auto_class, **task.inspected)
        module, values = with_head(model), task.values(validation)
        workload = cls(task, recipe, source, facts, validation, model, module, module, train, values)
        workload._keep_original(with_head)
        workload.reference = workload.original_reader.find(values, task.measured_with)
        return workload

    def _keep_original(self, with_head: Callable[[Any], torch.nn.Module]) -> None:
        """Keep the model as it is now: a small one's copy in memory, a large one's weights in their files.

        A large one is copied, too, where its code looks at a weight outside of the module that has it.
        """
        from archiver.models.streamed import streamed_copy

        if 4 * self.facts.num_parameters > _LARGE:
            streamed = streamed_copy(self.model, self.source.path)
            self.original = with_head(streamed.model)
            first = self.values[:1]
            expected = self.reader(self.module, original=True).find(first, self.task.measured_with)
            try:
                found = self.reader(self.original, original=True).find(first, self.task.measured_with)
            except Exception:  # whatever such code meets in an empty weight
                found = []
            outputs = [[output for one in side for output in one.outputs] for side in (expected, found)]
            if len(outputs[0]) == len(outputs[1]) and all(map(np.array_equal, *outputs)):
                self.streamed = streamed
                return
        self.original = copy.deepcopy(self.module)

    @contextmanager
    def original_in_memory(self) -> Iterator[torch.nn.Module]:
        with self.streamed.resident() if self.streamed is not None else nullcontext():
            yield self.original

    def reader(self, module: torch.nn.Module, *, original: bool = False) -> BatchHandler[Any]:
        """The task's handler over a torch module in this process: it cuts, batches and answers as the served one.

        Args:
            original: the input is read as the original model takes it.
        """
        handler: BatchHandler[Any] = load_object(self.task.handler)()
        handler.serving = {
            "task": self.task.name,
            "batching": {**BATCHING, **self.task.batching},
            "max_inputs": self.recipe.serve.max_inputs,
            **self.serving({"int8": False}),
        }
        handler.input = self.task.make_input(self, original)
        handler.session = ModuleSession(module)
        return handler

    @cached_property
    def original_reader(self) -> BatchHandler[Any]:
        """The handler over the original."""
        return self.reader(self.original, original=True)

    # ---- quality ------------------------------------------------------------------------------------------------------

    def metrics(self, found: Sequence[Found[Any]], handler: BatchHandler[Any]) -> dict[str, float]:
        """The task's metrics of what a model gives for `values`, against the examples and the original."""
        for one in found:
            for output in one.outputs:
                require_finite(output)
        return self.task.metrics_of(
            Measured(found, self.reference, self.examples, self.facts, handler, self.original_reader)
        )

    def measure(self) -> dict[str, float]:
        return self._measured(self.reader(self.module))

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return self.metrics(self.reference, self.original_reader)

    def measure_served(self, handler: Any, way: Any, folder: Path) -> dict[str, float]:
        return self._measured(handler)

    def _measured(self, handler: BatchHandler[Any]) -> dict[str, float]:
        return self.metrics(handler.find(self.values, self.task.measured_with), handler)

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.examples), **self.task.extent(self)}

    # ---- data ---------------------------------------------------------------------------------------------------------

    def calibration_batches(self, samples: int) -> list[Batch]:
        reader = self.reader(self.module)
        prepared = reader.prepare(self.task.values(self.train[:samples])[:samples], self.task.measured_with)
        items = [item for several in prepared for item in several][:samples]
        return [self._tensors(reader.input.collate([item], reader.input.size(item), 1)) for item in items]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        import torch

        reader = self.reader(self.module)
        prepared = reader.prepare(self.task.values(self.train), self.task.measured_with)
        items, size = [item for several in prepared for item in several], reader.input.size
        targets = self.task.targets(self, self.train, prepared) if self.task.learns_labels else None
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size * _POOL):
            pool = sorted(order[start : start + batch_size * _POOL], key=lambda i: size(items[i]))
            for first in range(0, len(pool), batch_size):
                members = pool[first : first + batch_size]
                longest = size(items[members[-1]])
                batch = self._tensors(reader.input.collate([items[i] for i in members], longest, len(members)))
                if targets is not None:
                    batch["labels"] = self.task.collate_targets([targets[i] for i in members], longest)
                batches.append(batch)
        return batches

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(repr(self.train).encode()).hexdigest()

    def _tensors(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        import torch

        module: Any = self.module
        return {name: torch.from_numpy(arrays[name]) for name in module.inputs if name in arrays}

    # ---- speed --------------------------------------------------------------------------------------------------------

    def speed_batches(self) -> list[Arrays]:
        return self._sorted(self.reader(self.module))

    def original_speed_batches(self) -> list[Arrays]:
        return self._sorted(self.original_reader)

    def _sorted(self, reader: BatchHandler[Any]) -> list[Arrays]:
        prepared = reader.prepare(self.values, self.task.measured_with)
        return sorted_batches(reader.input, [item for several in prepared for item in several])

    def items_of(self, batch: Any) -> float:
        return self.task.amount(self, batch)

    def speed(self, handler: Any) -> Speed:
        with self.timed_original() as original:
            return compare_speed(
                self.run_of(original),
                handler.session.run,
                self.original_speed_batches(),
                compressed_batches=self.speed_batches(),
                count=self.items_of,
            )

    def served_rates(self, staged: Mapping[str, tuple[Any, Path]], place: Path) -> dict[str, float]:
        handler, _ = next(iter(staged.values()))
        inputs = [handler.input.to_stored(value) for value in self.values[:MAX_ITEMS]]
        folders = {name: folder for name, (_, folder) in staged.items()}
        return served_rates(folders, inputs, self.task.measured_with, place)

    # ---- the archive --------------------------------------------------------------------------------------------------

    def write_inputs(self, folder: Path) -> None:
        self.task.write_inputs(self, folder)

    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "tolerance": TOLERANCE_INT8 if session["int8"] or session.get("bf16") else TOLERANCE_FP32,
            **self.task.input_settings(self),
            **self.task.answer_settings(self.facts),
        }

    def serving_packages(self, serving: Mapping[str, Any]) -> tuple[str, ...]:
        return self.task.serving_packages(serving)

    def choose_examples(self, handler: Any) -> tuple[list[Any], dict[str, Any]]:
        """Validation inputs, or the recipe's own file of examples where validation data must not travel."""
        wanted = self.recipe.serve.examples
        if not isinstance(wanted, Path):
            plan = plan_of(self.model)
            if plan is not None and plan.kind == "static-int8":
                return self._firm(handler, wanted), {}
            return list(self.values[:wanted]), {}
        return self.task.examples_of(wanted, self)[:MAX_EXAMPLES], {}

    def _firm(self, handler: Any, wanted: int) -> list[Any]:
        """Of the first validation inputs those whose answers the rounding of activations moves least, in their order.

        Another processor's sums differ in the last bit, here and there an activation is rounded to the next integer, and
        that moves what little decides: of four texts of SST-2 one or more was off by over 0.03 in three of ten draws.
        """
        values = list(self.values[: min(_FIRM * wanted, max(wanted, _COMPARED))])
        exact = respond_fully(self.reader(self.module), values)
        moved = [handler.compare(one, other) for one, other in zip(exact, respond_fully(handler, values), strict=True)]
        return [values[place] for place in sorted(np.argsort(moved, kind="stable")[:wanted])]

    def compared(self, examples: Sequence[Any]) -> Sequence[Any]:
        """Up to 64 of all inputs."""
        return self.values[:: -(-len(self.values) // _COMPARED)]


class ModuleSession:
    """A torch module as a session of this process. See handlers.runtimes.base.Session.

    It computes where the module's weights are.
    """

    name = "module"

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        import torch

        device = next(self._module.parameters()).device
        with torch.inference_mode():
            given = [name for name in self._module.inputs if name in arrays]
            tensors = {name: torch.from_numpy(arrays[name]).to(device) for name in given}
            found: np.ndarray = self._module(**tensors).float().cpu().numpy()
            return found
