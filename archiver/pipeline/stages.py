"""The recipe's stages, run one after another on the model; each says what it cost and what it won."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archiver.compression.context import StageContext
from archiver.compression.report import StageReport
from archiver.errors import DataError
from archiver.evaluation.gate import missed_bounds, require_passed
from archiver.evaluation.speed import compare_speed
from archiver.progress import Progress
from archiver.spec import GateSpec, Stage, as_dict
from archiver.state.plan import plan_of
from archiver.tasks.losses import OBJECTIVES
from archiver.tasks.workload import Subject
from handlers.manifest import canonical_json

CHECKPOINTS = ".checkpoints"
_SPEED_BATCHES = 8
_SPEED_ROUNDS = 3


@dataclass
class Compressed:
    """reports: one a stage. speeds: one a stage, in-process torch speed before and after, relative to the original."""

    reports: list[StageReport] = field(default_factory=list)
    speeds: list[dict[str, Any]] = field(default_factory=list)


def compress(subject: Subject, progress: Progress, model_store: Path | None = None) -> Compressed:
    """Run the stages in the recipe's order on `subject.model`, in place.

    model_store: where long stages keep checkpoints; None: nowhere
    GateFailed when a stage's own bound is missed. Those of a stage that only plans integers are looked at with the gate's.
    """
    done = Compressed()
    before, speed = subject.original_metrics, 1.0
    for index, stage in enumerate(subject.recipe.compress):
        checkpoint = None if model_store is None else _checkpoint(subject, index, model_store)
        with progress.step(f"compress: {stage.label}"):
            report = stage.entry.load()(subject.model, stage.options, _examples(subject, stage, progress, checkpoint))
        if plan_of(subject.model) is not None:  # integers are only planned: no weight has changed before the export
            done.reports.append(report)
            continue
        with progress.step(f"measure: after {stage.label}"):
            try:
                after = subject.measure()
            except DataError as error:  # the answers are no numbers: whatever the gate bounds, it is missed
                require_passed(subject.recipe.name, [f"{stage.label}: {error}"])
                raise
            now = _relative_speed(subject)
        done.reports.append(dataclasses.replace(report, metrics={"before": dict(before), "after": after}))
        done.speeds.append({"method": report.method, "before": round(speed, 3), "after": round(now, 3)})
        before, speed = after, now
        if stage.bounds is not None:
            require_passed(subject.recipe.name, _missed(stage, subject.original_metrics, after))
    return done


def forget_checkpoints(subject: Subject, model_store: Path) -> None:
    """Remove what interrupted runs of this very recipe would have gone on from: it has become an archive."""
    for index in range(len(subject.recipe.compress)):
        path = _checkpoint(subject, index, model_store)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink(missing_ok=True)
    folder = model_store / CHECKPOINTS
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _examples(subject: Subject, stage: Stage, progress: Progress, checkpoint: Path | None) -> StageContext:
    return StageContext(
        module=subject.module,
        teacher=subject.original,
        objective=OBJECTIVES[subject.recipe.task],
        calibrate=subject.calibration_batches,
        train=subject.training_batches,
        measure=subject.measure,
        original_metrics=subject.original_metrics,
        missed=lambda metrics: _missed(stage, subject.original_metrics, metrics),
        bounded=stage.bounds is not None,
        say=progress.say,
        checkpoint=checkpoint,
        tokenizer_json=lambda: subject.tokenizer_json,
    )


def _missed(stage: Stage, original: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
    bounds = stage.bounds or GateSpec()
    return [f"{stage.label}: {line}" for line in missed_bounds(bounds, dict(original), dict(found))]


def _relative_speed(subject: Subject) -> float:
    """How many times as fast as the original the module runs in eager PyTorch, in turns, on some of the speed batches.

    It is the eager speed of the shapes as they are: what a runtime makes of them is measured on the finished candidate.
    """
    every = subject.speed_batches()
    batches = every[:: -(-len(every) // _SPEED_BATCHES)]
    original, compressed = subject.run_of(subject.original), subject.run_of(subject.module)
    with torch.no_grad():
        return compare_speed(
            original, compressed, batches, rounds=_SPEED_ROUNDS, count=subject.items_of
        ).speedup  # fmt: skip


def _checkpoint(subject: Subject, index: int, model_store: Path) -> Path:
    """Its name is a digest of everything that leads to this stage's weights."""
    recipe = as_dict(subject.recipe)
    leads = {
        "model": subject.source.sha256,
        "task": subject.recipe.task,
        "max_length": subject.recipe.serve.max_length,
        "context": subject.recipe.data.context,
        "stages": recipe["compress"][: index + 1],
        "train": subject.train_digest,
        "validation": hashlib.sha256(repr(subject.examples).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(canonical_json(leads)).hexdigest()[:24]
    return model_store / CHECKPOINTS / f"{index}-{digest}"
