"""What tasks share that are answered in one pass, whatever their input is: the declarations, beside those of every task.

Build time and serving use one kind of input (handlers.inputs) and one handler: what is measured, calibrated, trained and
timed here is cut and read exactly as what is served.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.tasks.base import Task, engine_server
from handlers.base import BatchHandler, Found
from handlers.inputs.base import Input
from handlers.tasks.rows import rows_of

if TYPE_CHECKING:
    import torch

    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.spec import ServeSpec
    from archiver.tasks.workload import Arrays, Workload

SERVE_BATCHES = """\
  batch_size: 32                # inputs that run together at most; none waits for company
  max_queue: 128                # requests that may wait in a worker; beyond, 503"""


@dataclass(frozen=True)
class Measured:
    """What a model gives for the validation examples, beside what the original gives: for metrics.

    Args:
        found, reference: one a value, in the order of `ForwardTask.values`, of the model as it is now and of the original.
        examples: validation examples, as read.
        handler: turns `found` into answers (`handler.answers(found, parameters)`); it may have no model of its own.
        original: the same for `reference`, as the original's tokens are numbered.
    """

    found: Sequence[Found[Any]]
    reference: Sequence[Found[Any]]
    examples: Sequence[Any]
    facts: ModelFacts
    handler: BatchHandler[Any]
    original: BatchHandler[Any]

    @property
    def rows(self) -> np.ndarray:
        """[n, …]: the outputs, for tasks with one item a value."""
        return rows_of(self.found)

    @property
    def reference_rows(self) -> np.ndarray:
        """[n, …]: the original's."""
        return rows_of(self.reference)


class ForwardTask(Task):
    """A task whose answer is made of one pass over each of an input's items.

    Its `module` is made with the transformers model and `module_settings`; the module's `inputs` name the tensors that
    `forward` takes, its `settings` are what it was made with beside the model; it gives one tensor [rows, …].
    """

    workload = "archiver.tasks.forward_workload:ForwardWorkload"
    starter_serve = SERVE_BATCHES

    # ---- the model ----------------------------------------------------------------------------------------------------

    def module_settings(self, facts: ModelFacts) -> dict[str, Any]:
        """What the module is made with beside the model; JSON values."""
        return {}

    @abstractmethod
    def tracing(self, workload: Workload) -> Tracing:
        """An example call of the workload's module for the exporters, and which of its sizes vary."""

    # ---- inputs -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def values(self, examples: Sequence[Any]) -> list[Any]:
        """What requests would send to have examples answered.

        Args:
            examples: as `read` gives them.
        Returns: inputs, as the kind of input decodes them; one an example where there are `targets`.
        """

    @abstractmethod
    def input_settings(self, workload: Workload) -> dict[str, Any]:
        """What serving.json says of the inputs."""

    @abstractmethod
    def make_input(self, workload: Workload, original: bool) -> Input[Any, Any]:
        """The kind of input that will serve.

        Args:
            original: as the original model takes it, not as the model is now.
        """

    def write_inputs(self, workload: Workload, folder: Path) -> None:
        """Write the files that the serving side needs to read requests into `folder`."""

    def sizes(self, serve: ServeSpec) -> list[int]:
        """The sizes, ascending, that items are filled up to where a runtime prepares kernels for each; [] for no axis."""
        return []

    def examples_of(self, where: Path, workload: Workload) -> list[Any]:
        """The inputs of the file that `serve.examples` names: examples to store in the place of validation data."""
        return self.values(self.read(where, workload.recipe, workload.source, workload.facts))

    def amount(self, workload: Workload, batch: Arrays) -> float:
        """How many of what speed counts (`unit`) a batch of arrays holds."""
        return len(next(iter(batch.values())))

    def extent(self, workload: Workload) -> dict[str, int]:
        """How much the metrics were measured on, beside the number of examples."""
        return {}

    def serving_packages(self, serving: Mapping[str, Any]) -> tuple[str, ...]:
        """Lines of requirements.txt that these settings need on the host beside the task's and the runtime's."""
        return ()

    # ---- answers ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        """What serving.json says of how outputs become answers."""

    @abstractmethod
    def metrics_of(self, measured: Measured) -> dict[str, float]:
        """The task's metrics."""

    # ---- training -----------------------------------------------------------------------------------------------------

    def targets(
        self, workload: Workload, examples: Sequence[Any], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """What each item's output should be.

        Args:
            examples: of data.train. prepared: the items of each.
        Returns: numbers or arrays, one an item, in order; None where there is nothing to learn from but the original.
        """
        return None

    def collate_targets(self, targets: Sequence[Any], size: int) -> torch.Tensor:
        """Targets of one batch as a tensor [rows, …].

        Args:
            size: that its items are padded to.
        """
        import torch

        return torch.as_tensor(np.stack(targets))

    # ---- serving ------------------------------------------------------------------------------------------------------

    def server_config(self, serve: ServeSpec) -> dict[str, Any]:
        """TorchServe's settings."""
        return engine_server(serve)
