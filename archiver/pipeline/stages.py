"""The recipe's stages, run one after another on the model; each is measured before and after."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
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
from archiver.tasks import Task
from archiver.tasks.workload import Workload
from handlers.manifest import canonical_json

CHECKPOINTS = ".checkpoints"
_SPEED_BATCHES = 8
_SPEED_ROUNDS = 3


@dataclass
class Compressed:
    """reports: one a stage. speeds: one a stage, in-process torch speed before and after, relative to the original."""

    reports: list[StageReport] = field(default_factory=list)
    speeds: list[dict[str, Any]] = field(default_factory=list)


def compress(workload: Workload, progress: Progress, model_store: Path | None = None) -> Compressed:
    """Run the stages in the recipe's order on `workload.model`, in place.

    model_store: where long stages keep checkpoints; None: nowhere
    GateFailed when a stage's own bound is missed. Those of a stage that only plans integers are looked at with the gate's.
    """
    done = Compressed()
    before, speed = workload.original_metrics, 1.0
    for index, stage in enumerate(workload.recipe.compress):
        checkpoint = None if model_store is None else _checkpoint(workload, index, model_store)
        with progress.step(f"compress: {stage.label}"):
            report = stage.entry.load()(
                workload.model, stage.options, context_of(workload, stage, progress, checkpoint)
            )
        if plan_of(workload.model) is not None:  # integers are only planned: no weight has changed before the export
            done.reports.append(report)
            continue
        with progress.step(f"measure: after {stage.label}"):
            try:
                after = workload.measure()
            except DataError as error:  # the answers are no numbers: whatever the gate bounds, it is missed
                require_passed(workload.recipe.name, [f"{stage.label}: {error}"])
                raise
            now = _relative_speed(workload)
        done.reports.append(dataclasses.replace(report, metrics={"before": dict(before), "after": after}))
        done.speeds.append({"method": report.method, "before": round(speed, 3), "after": round(now, 3)})
        before, speed = after, now
        if stage.bounds is not None:
            require_passed(workload.recipe.name, _missed(stage, workload.original_metrics, after))
    return done


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
    return StageContext(
        module=workload.module,
        teacher=workload.original,
        objective=objective_of(workload.task),
        calibrate=workload.calibration_batches,
        train=workload.training_batches,
        measure=workload.measure,
        original_metrics=workload.original_metrics,
        missed=lambda metrics: _missed(stage, workload.original_metrics, metrics),
        bounded=stage.bounds is not None,
        say=progress.say,
        checkpoint=checkpoint,
        tokenizer_json=lambda: workload.tokenizer_json,
    )


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
    original, compressed = workload.run_of(workload.original), workload.run_of(workload.module)
    with torch.no_grad():
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
