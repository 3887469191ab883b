"""What a compression stage may ask of the build: data, the original model, what the model scores now, its bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archiver.compression.objective import Objective
from archiver.errors import DataError, RecipeError

Batch = Mapping[str, torch.Tensor]


def _nothing(line: str) -> None:
    """Progress of a stage that is run without a build is not printed."""


def _no_tokenizer() -> bytes:
    raise RecipeError("this stage needs the tokenizer, and is run without one")


@dataclass
class StageContext:
    """The third argument of every stage function.

    Args:
        module: the model being compressed with its head, `module(**inputs)` → outputs (logits, pooled vectors).
        teacher: the same around the untouched original.
        objective: the task's losses and deciding metrics.
        calibrate: samples → that many batches of data.train, one text (or one window of text) each, without padding.
        train: (batch_size, seed) → all of data.train in batches of like length, `labels` among their tensors where known.
        measure: () → the validation metrics of `module` as it is now.
        original_metrics: those of the original.
        missed: metrics → a sentence for each of the stage's own bounds that they miss.
        bounded: the stage has such bounds.
        say: prints one line of progress, at once.
        checkpoint: where a long stage keeps what it has reached, without suffix; None: nowhere.
        tokenizer_json: () → the tokenizer.json of the model as it is now.
    """

    module: torch.nn.Module
    teacher: torch.nn.Module
    objective: Objective
    calibrate: Callable[[int], Sequence[Batch]]
    train: Callable[[int, int], Sequence[Batch]]
    measure: Callable[[], dict[str, float]]
    original_metrics: Mapping[str, float] = field(default_factory=dict)
    missed: Callable[[Mapping[str, float]], list[str]] = lambda metrics: []
    bounded: bool = False
    say: Callable[[str], None] = _nothing
    checkpoint: Path | None = None
    tokenizer_json: Callable[[], bytes] = _no_tokenizer

    def passes(self) -> bool:
        """Whether the model as it is now keeps the stage's own bounds on validation; answers that are NaN keep none."""
        try:
            return not self.missed(self.measure())
        except DataError:
            return False

    def part(self, name: str) -> StageContext:
        """The same context for one of several trainings within a stage, with a checkpoint of its own."""
        where = self.checkpoint.with_name(f"{self.checkpoint.name}-{name}") if self.checkpoint else None
        return dataclasses.replace(self, checkpoint=where)


def inputs_of(batch: Batch, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a batch that a model takes.

    Args:
        batch: name → tensor [rows, …], and labels.
        module: a module whose `inputs` name the tensors it takes; of any other all but the labels.
    """
    names = getattr(module, "inputs", [name for name in batch if name != "labels"])
    return {name: batch[name] for name in names if name in batch}


def real_places(batch: Batch, module: torch.nn.Module) -> torch.Tensor | None:
    """[rows, length] of a batch, 1 where the module's output stands for something that is no padding.

    Args:
        batch: name → tensor [rows, …].
        module: a module whose output has other places than its inputs says so by `real_places(batch)`.
    Returns: its answer, else the attention mask; None for inputs without one.
    """
    own = getattr(module, "real_places", None)
    return batch.get("attention_mask") if own is None else own(batch)


def rows_of(batch: Batch) -> int:
    """How many inputs a batch holds."""
    return len(next(iter(batch.values())))


def calibration_forward(
    module: torch.nn.Module, batches: Sequence[Batch], done: Callable[[], None] = lambda: None
) -> None:
    """Run batches through the module, without gradients, for what hooks on it see of them; `done()` after each."""
    with torch.no_grad():
        for batch in batches:
            module(**inputs_of(batch, module))
            done()


def stacked(batches: Sequence[Batch]) -> list[Batch]:
    """Inputs of one size put together: the same answers in fewer runs.

    Args:
        batches: of one input each, tensors [1, …].
    Returns: batches of up to 16 inputs and some 2048 tokens (of images and sounds up to 4), [inputs, …].
    """
    by_shape: dict[Any, list[Batch]] = {}
    for batch in batches:
        by_shape.setdefault(tuple((name, item.shape) for name, item in batch.items()), []).append(batch)
    return [
        {key: torch.cat([batch[key] for batch in part]) for key in part[0]}
        for alike in by_shape.values()
        for part in _parts(alike)
    ]


def _parts(alike: Sequence[Batch]) -> list[Sequence[Batch]]:
    ids = alike[0].get("input_ids")
    most = 4 if ids is None else max(1, min(16, 2048 // max(1, ids.shape[-1])))
    return [alike[start : start + most] for start in range(0, len(alike), most)]
