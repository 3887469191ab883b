"""What a build works on: the recipe, the model with its data, and how the model measures up as it is now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archiver.errors import DataError

if TYPE_CHECKING:
    import torch

    from archiver.evaluation.comparison import Comparison
    from archiver.evaluation.speed import Speed
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import GateSpec, Recipe
    from archiver.tasks.base import Task

Batch = Mapping[str, "torch.Tensor"]
Arrays = Mapping[str, np.ndarray]

# The largest difference allowed between an answer and the same answer elsewhere: alone or in a batch, here or on another
# host. fp32 sums come in another order; next to a rounding threshold of int8 that flips one of 255 steps.
TOLERANCE_FP32 = 0.001
TOLERANCE_INT8 = 0.03
MAX_EXAMPLES = 64
# How sub-batches are cut, see handlers.batching.plan. Measured with MiniLM-L6 on one core: beyond some 200 tokens a larger
# sub-batch is no faster; one more sub-batch costs as much as some 48 tokens.
BATCHING: Mapping[str, Any] = {"token_budget": 512, "max_rows": 32, "run_cost": 48}


@dataclass
class Workload(ABC):
    """One recipe's model and data, as the stages change the model and the runtimes export it.

    Attributes:
        model: the transformers module that the stages change. module: it with its head, called with a batch's tensors.
        original: an untouched copy of `module`.
        examples: validation examples, as read.
        shared: what the exports of several runtimes have in common, made once.
        precision: what the next export computes in where nothing is quantized: "f32" or "bf16".
    """

    task: Task
    recipe: Recipe
    source: ModelSource
    facts: ModelFacts
    examples: Sequence[Any]
    model: torch.nn.Module
    module: torch.nn.Module
    original: torch.nn.Module
    shared: dict[str, Any] = field(default_factory=dict, kw_only=True)
    precision: str = field(default="f32", kw_only=True)

    @classmethod
    @abstractmethod
    def load(
        cls,
        task: Any,
        recipe: Recipe,
        source: ModelSource,
        facts: ModelFacts,
        validation: list[Any],
        train: list[Any],
    ) -> Self:
        """Load the model. Arguments as `Task.load` has them."""

    # ---- data ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def calibration_batches(self, samples: int) -> list[Batch]:
        """The first `samples` examples of data.train, one a batch, without padding, in file order."""

    @abstractmethod
    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        """All of data.train in batches, composed by the seed, with `labels` where there are any."""

    @property
    @abstractmethod
    def train_digest(self) -> str:
        """SHA-256 of data.train as read."""

    @property
    @abstractmethod
    def extent(self) -> dict[str, int]:
        """How much the metrics were measured on: for the report's `measured_on`."""

    # ---- quality ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """The task's metrics of `module` as it is now, on the validation examples."""

    @property
    @abstractmethod
    def original_metrics(self) -> dict[str, float]:
        """Those of the original, measured once."""

    def compare(self, bounds: Sequence[GateSpec]) -> Comparison:
        """The metrics of `module` as it is now beside the original's on the same inputs.

        Args:
            bounds: what is to be decided: a task that reads samples may stop when the verdicts are sure.
        """
        from archiver.evaluation.comparison import Comparison

        return Comparison(self.measure(), self.original_metrics, self.extent)

    def compare_served(self, handler: Any, way: Any, folder: Path) -> Comparison:
        """The same through the handler that will serve, for the recipe's final bounds. Args: as `measure_served`."""
        from archiver.evaluation.comparison import Comparison

        return Comparison(self.measure_served(handler, way, folder), self.original_metrics, self.extent)

    @abstractmethod
    def measure_served(self, handler: Any, way: Any, folder: Path) -> dict[str, float]:
        """The same through the handler that will serve.

        Args:
            handler: opened on `folder`, the staged archive.
            way: the runtime's Way for the task's execution.
        """

    # ---- speed --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def speed_batches(self) -> list[Any]:
        """What speed is measured on; each goes to the functions that `run_of` gives."""

    @abstractmethod
    def original_speed_batches(self) -> list[Any]:
        """The same texts as the original's own tokenizer cuts them."""

    @abstractmethod
    def items_of(self, batch: Any) -> float:
        """How many of what speed counts (the task's `unit`) are in a batch of `speed_batches`."""

    def served_rates(self, staged: Mapping[str, tuple[Any, Path]], place: Path) -> dict[str, float]:
        """What staged archives answer a second, compared as serving runs them; empty where only `speed` tells.

        Args:
            staged: name → (handler, folder). place: a folder for files while it is measured.
        """
        return {}

    def run_of(self, module: torch.nn.Module) -> Callable[[Arrays], np.ndarray]:
        """A torch module as a function of a batch of `speed_batches`, for timing, on the device that it is on now."""
        import torch

        called: Any = module
        device = next(module.parameters()).device

        def run(arrays: Arrays) -> np.ndarray:
            with torch.inference_mode():
                given = {name: torch.from_numpy(arrays[name]).to(device) for name in called.inputs if name in arrays}
                found: np.ndarray = called(**given).cpu().numpy()
                return found

        return run

    def park(self, folder: Path) -> None:  # noqa: B027 - small models stay where they are
        """The stages are done: from now on the weights need be in memory only inside `weights_in_memory`.

        Args:
            folder: has room for a file with them, as long as the workload is used.
        """

    @contextmanager
    def weights_in_memory(self) -> Iterator[None]:
        """Inside, the weights of `model` may be looked at, not only computed with."""
        yield

    @contextmanager
    def original_in_memory(self) -> Iterator[torch.nn.Module]:
        """The original as it is timed: with its weights in memory while the context lasts."""
        yield self.original

    @property
    def timed_on(self) -> str:
        """What the original is timed on: the archive's own device; the CPU where torch does not see that.

        Beside vLLM it is the CPU, too: the engine holds most of the GPU's memory, and forks only while no CUDA is started.
        """
        import torch

        serve = self.recipe.serve
        shared = serve.device == "cuda" and serve.runtime != "vllm"
        return "cuda" if shared and torch.cuda.is_available() else "cpu"

    @contextmanager
    def timed_original(self) -> Iterator[torch.nn.Module]:
        """The original as what will serve is compared with it: its weights in memory, on the device `timed_on`."""
        with self.original_in_memory() as module:
            if self.timed_on == "cpu":
                yield module
                return
            try:
                yield module.to(self.timed_on)
            finally:
                module.to("cpu")

    @abstractmethod
    def speed(self, handler: Any) -> Speed:
        """What will serve against PyTorch eager fp32, in turns in one run, on the same device where torch sees it."""

    # ---- the archive --------------------------------------------------------------------------------------------------

    @abstractmethod
    def write_inputs(self, folder: Path) -> None:
        """Write the files that the serving side needs to read requests into `folder`."""

    @abstractmethod
    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """What serving.json says beside what every archive's says.

        Args:
            session: the runtime's settings, as its export gave them.
        """

    def serving_packages(self, serving: Mapping[str, Any]) -> tuple[str, ...]:
        """Packages that these settings need on the host beside the task's and the runtime's."""
        return ()

    @abstractmethod
    def choose_examples(self, handler: Any) -> tuple[list[Any], dict[str, Any]]:
        """(the inputs to store with their answers, what serving.json has to say of them)."""

    def compared(self, examples: Sequence[Any]) -> Sequence[Any]:
        """The inputs whose answers alone are compared with those in a batch.

        Args:
            examples: those that are stored.
        """
        return examples

    @property
    def adapters(self) -> Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]:
        """The recipe's LoRA adapters: name → layer → (A, B with the scale), for tasks that have some."""
        return {}

    def adapter_examples(self, handler: Any) -> tuple[list[tuple[Any, dict[str, Any]]], dict[str, Any]]:
        """Inputs to store with the adapters' answers, each with its parameters; what the report says of the adapters.

        Args:
            handler: opened on the staged archive.
        """
        return [], {}

    @cached_property
    def tokenizer_bytes(self) -> bytes:
        """The model directory's tokenizer.json."""
        return (self.source.path / "tokenizer.json").read_bytes()

    @property
    def tokenizer_json(self) -> bytes:
        """The tokenizer.json that goes with the model as it is now, for tasks whose model takes tokens."""
        from archiver.state.constraints import state_of

        return state_of(self.model).tokenizer_json or self.tokenizer_bytes

    @property
    def pad_id(self) -> int:
        """The padding token's id in the model as it is now."""
        from archiver.state.constraints import state_of

        old_ids = state_of(self.model).old_ids
        if old_ids is None:
            return self.facts.pad_token_id
        return int((old_ids == self.facts.pad_token_id).nonzero()[0, 0])


def require_finite(outputs: np.ndarray) -> None:
    """DataError where the model's answers are no numbers: nothing can be measured then."""
    if not np.isfinite(outputs).all():
        raise DataError("the model gave an answer that is not finite on a validation text: nothing can be measured")
