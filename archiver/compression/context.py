"""What a compression stage may ask of the build: data, the original model, what the model scores now, its bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archiver.compression.retrain.objectives import OBJECTIVES, Objective
from archiver.errors import DataError, RecipeError

Batch = Mapping[str, torch.Tensor]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def _nothing(line: str) -> None:
    """A stage that is run without a build has nobody to tell."""


def _no_tokenizer() -> bytes:
    raise RecipeError("this stage needs the tokenizer, and is run without one")


@dataclass
class StageContext:
    """The third argument of every stage function.

    module: the model being compressed with its head, `module(**inputs)` → outputs (logits, pooled vectors)
    teacher: the same around the untouched original
    task: a key of archiver.tasks.base.TASKS
    calibrate: samples → that many batches of data.train, one text (or one window of text) each, without padding
    train: (batch_size, seed) → all of data.train in batches of like length, `labels` among their tensors where known
    measure: () → the validation metrics of `module` as it is now
    original_metrics: those of the original
    missed: metrics → a sentence for each of the stage's own bounds that they miss; bounded: it has such bounds
    say: one line of progress, at once
    tokenizer_json: () → the tokenizer.json of the model as it is now
    checkpoint: where a long stage keeps what it has reached, without suffix; None: nowhere
    """

    module: torch.nn.Module
    teacher: torch.nn.Module
    task: str
    calibrate: Callable[[int], Sequence[Batch]]
    train: Callable[[int, int], Sequence[Batch]]
    measure: Callable[[], dict[str, float]]
    original_metrics: Mapping[str, float] = field(default_factory=dict)
    missed: Callable[[Mapping[str, float]], list[str]] = lambda metrics: []
    bounded: bool = False
    say: Callable[[str], None] = _nothing
    checkpoint: Path | None = None
    tokenizer_json: Callable[[], bytes] = _no_tokenizer

    @property
    def objective(self) -> Objective:
        """The task's losses."""
        return OBJECTIVES[self.task]

    def passes(self) -> bool:
        """Whether the model as it is now keeps the stage's own bounds on validation. NaN answers keep none."""
        try:
            return not self.missed(self.measure())
        except DataError:
            return False

    def part(self, name: str) -> StageContext:
        """The same for one of several trainings within a stage, with a checkpoint of its own."""
        import dataclasses

        where = self.checkpoint.with_name(f"{self.checkpoint.name}-{name}") if self.checkpoint else None
        return dataclasses.replace(self, checkpoint=where)


# The validation metric that says most finely how good a model is, by preference; the sign makes lower better.
_FINE = (("cross_entropy", 1), ("perplexity", 1), ("cosine", -1), ("agreement", -1))


def fine_score(metrics: Mapping[str, float]) -> float:
    """One number, lower is better, from whatever metrics the task has: cross-entropy and perplexity before shares."""
    for name, sign in _FINE:
        if name in metrics:
            return sign * metrics[name]
    raise DataError("nothing can be measured on the validation data: give it labels")


def inputs_of(batch: Batch, module: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a batch that a model takes: without labels, and without type ids where it knows none."""
    takes_types = getattr(module, "takes_type_ids", True)
    return {
        name: batch[name] for name in INPUTS if name in batch and (takes_types or name != "token_type_ids")
    }  # fmt: skip


def calibration_forward(module: torch.nn.Module, batches: Sequence[Batch]) -> None:
    """Run batches through for what hooks on the model see of them; no gradients."""
    with torch.no_grad():
        for batch in batches:
            module(**inputs_of(batch, module))


def describe_options(options: Any) -> dict[str, Any]:
    """A stage's options for its report: what was left at None or empty says nothing and is left out."""
    import dataclasses

    return {key: value for key, value in dataclasses.asdict(options).items() if value not in (None, (), [], {})}
