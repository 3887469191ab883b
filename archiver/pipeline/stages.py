"""The recipe's stages, run one after another on the model; measured after those whose bounds or report ask for it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archiver.compression.context import StageContext
from archiver.compression.objective import Objective
from archiver.compression.report import StageReport
from archiver.errors import DataError
from archiver.evaluation.gate import missed_bounds, require_passed
from archiver.evaluation.speed import compare_speed
from archiver.progress import Progress
from archiver.recipe.plain import as_dict
from archiver.spec import GateSpec, Stage
from archiver.state.plan import plan_of
from archiver.state.precision import keep_precision
from archiver.storage.sizes import stored_bytes
from archiver.tasks import Task
from archiver.tasks.workload import Workload
from handlers.manifest import canonical_json

CHECKPOINTS = ".checkpoints"
_SPEED_BATCHES = 8
_SPEED_ROUNDS = 3


@dataclass
class Compressed:
    """reports: one a stage. speeds: one a stage that was measured, in-process torch speed relative to the original."""

    reports: list[StageReport] = field(default_factory=list)
    speeds: list[dict[str, Any]] = field(default_factory=list)


def compress(workload: Workload, progress: Progress, model_store: Path | None = None) -> Compressed:
    """Run the stages in the recipe's order on `workload.model`, in place.

    model_store: where long stages keep checkpoints; None: nowhere
    GateFailed when a stage's own bound is missed. Those of a stage that only plans integers are looked at with the gate's.
    """
    done = Compressed()
    before: Mapping[str, float] | None = None  # of the model before the stage: nothing is known of the original yet
    speed: float | None = 1.0
    for index, stage in enumerate(workload.recipe.compress):
        checkpoint = None if model_store is None else _checkpoint(workload, index, model_store)
        with progress.step(f"compress: {stage.label}"):
            report = stage.entry.load()(
                workload.model, stage.options, context_of(workload, stage, progress, checkpoint)
            )
        if index == len(workload.recipe.compress) - 1:
            report = _in_its_precision(workload, report)
        if plan_of(workload.model) is not None:  # integers are only planned: no weight has changed before the export
            done.reports.append(report)
            continue
        if stage.bounds is None and not stage.measure:
            done.reports.append(report)
            before, speed = {}, None
            continue
        with progress.step(f"measure: after {stage.label}"):
            try:
                found = workload.compare([stage.bounds] if stage.bounds is not None else [])
            except DataError as error:  # the answers are no numbers: whatever the gate bounds, it is missed
                require_passed(workload.recipe.name, [f"{stage.label}: {error}"])
                raise
            now = _relative_speed(workload)
        earlier = found.original if before is None else before
        metrics = {"original": found.original, "before": dict(earlier), "after": found.metrics}
        metrics = {when: values for when, values in metrics.items() if values}
        done.reports.append(dataclasses.replace(report, metrics=metrics))
        rates = {"before": speed, "after": now}
        known = {when: round(rate, 3) for when, rate in rates.items() if rate is not None}
        done.speeds.append({"method": report.method, **known})
        before, speed = found.metrics, now
        if stage.bounds is not None:
            require_passed(workload.recipe.name, _missed(stage, found.original, found.metrics))
    return done


def _in_its_precision(workload: Workload, report: StageReport) -> StageReport:
    """The last stage's report, once what it leaves as floats is as short as the checkpoint has it."""
    dtype = workload.facts.dtype
    rounded = keep_precision(workload.model, dtype)
    if not rounded:
        return report
    note = f"{rounded} of the matrices that are no integers are rounded to the checkpoint's own {dtype}"
    return dataclasses.replace(report, notes=(*report.notes, note), weight_bytes=stored_bytes(workload.model))


def forget_checkpoints(workload: Workload, model_store: Path) -> None:
    """Remove the checkpoints of this recipe's stages, which interrupted builds have left: its archive is written."""
    remove_checkpoints([_checkpoint(workload, index, model_store) for index in range(len(workload.recipe.compress))])


def remove_checkpoints(paths: Sequence[Path]) -> None:
    """Remove checkpoints, and their folders where nothing is left in them.

    Args:
        paths: without suffix.
    """
    for path in paths:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def context_of(workload: Workload, stage: Stage, progress: Progress, checkpoint: Path | None) -> StageContext:
    """What a stage may ask of the build.

    Args:
        checkpoint: where it keeps what it has reached, without suffix; None: nowhere.
    """
    return _BuildContext(
        module=workload.module,
        teacher=workload.original,
        objective=objective_of(workload.task),
        calibrate=workload.calibration_batches,
        train=workload.training_batches,
        measure=workload.measure,
        original_metrics=_Late(lambda: workload.original_metrics),
        missed=lambda metrics: _missed(stage, workload.original_metrics, metrics),
        bounded=stage.bounds is not None,
        say=progress.say,
        checkpoint=checkpoint,
        tokenizer_json=lambda: workload.tokenizer_json,
        kept=lambda: _keeps_bounds(workload, stage),
    )


@dataclass
class _BuildContext(StageContext):
    """A stage's context within a build.

    Args:
        kept: () → whether the model as it is now keeps the stage's own bounds, over as much data as that takes.
    """

    kept: Callable[[], bool] = lambda: True

    def passes(self) -> bool:
        return self.kept()


class _Late(Mapping[str, float]):
    """Metrics that are measured when somebody first looks at them."""

    def __init__(self, measure: Callable[[], Mapping[str, float]]) -> None:
        self._measure = measure

    def __getitem__(self, name: str) -> float:
        return self._measure()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._measure())

    def __len__(self) -> int:
        return len(self._measure())


def _keeps_bounds(workload: Workload, stage: Stage) -> bool:
    """Answers that are no numbers keep no bound."""
    try:
        found = workload.compare([stage.bounds] if stage.bounds is not None else [])
    except DataError:
        return False
    return not _missed(stage, found.original, found.metrics)


def objective_of(task: Task) -> Objective:
    """The task's losses, and the metrics by which a model is judged, as a stage gets them."""
    better = {name: metric.higher_is_better for name, metric in task.metrics.items()}
    return Objective(
        distance=task.distance,
        loss=task.loss if task.learns_labels else None,
        predicts_tokens=task.predicts_tokens,
        headline={name: better[name] for name in task.headlines},
        finest={name: better[name] for name in task.fine},
    )


def _missed(stage: Stage, original: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    bounds = stage.bounds or GateSpec()
    return [f"{stage.label}: {line}" for line in missed_bounds(bounds, dict(original), dict(found))]


def _relative_speed(workload: Workload) -> float:
    """How many times as fast as the original the module runs in eager PyTorch, in turns, on some of the speed batches.

    It is the eager speed of the shapes as they are: what a runtime makes of them is measured on the staged archive.
    """
    every = workload.speed_batches()
    batches = every[:: -(-len(every) // _SPEED_BATCHES)]
    compressed = workload.run_of(workload.module)
    with torch.no_grad(), workload.original_in_memory() as module:
        original = workload.run_of(module)
        return compare_speed(
            original, compressed, batches, rounds=_SPEED_ROUNDS, count=workload.items_of
        ).speedup  # fmt: skip


def _checkpoint(workload: Workload, index: int, model_store: Path) -> Path:
    """Its name is a digest of everything that leads to this stage's weights."""
    recipe = as_dict(workload.recipe)
    leads = {
        "model": workload.source.sha256,
        "task": workload.recipe.task,
        "max_length": workload.recipe.serve.max_length,
        "context": workload.recipe.data.context,
        "stages": recipe["compress"][: index + 1],
        "train": workload.train_digest,
        "validation": hashlib.sha256(repr(workload.examples).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(canonical_json(leads)).hexdigest()[:24]
    return model_store / CHECKPOINTS / f"{index}-{digest}"
