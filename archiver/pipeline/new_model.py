"""`model: new:FAMILY` trained, before all stages, by the loop of `retrain`.

What comes out is a model directory like any other: what the stages lose, they lose of a trained model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from archiver.compression.retrain.training import train
from archiver.models.config import quiet
from archiver.models.facts import inspect_model
from archiver.pipeline.check import Checked
from archiver.pipeline.sources import directory_of
from archiver.pipeline.stages import CHECKPOINTS, context_of, remove_checkpoints
from archiver.progress import Progress
from archiver.spec import NewModel, Stage
from archiver.tasks.workload import Workload
from handlers.manifest import canonical_json


@dataclass(frozen=True)
class Start:
    """What the stages begin with.

    Args:
        checked: with a trained model. checkpoint: where its training has left what an interrupted build goes on from,
            without suffix; None for a model that was there already.
    """

    checked: Checked
    checkpoint: Path | None = None

    def forget(self) -> None:
        """Remove the checkpoint: the archive is written."""
        if self.checkpoint is not None:
            remove_checkpoints([self.checkpoint])


def start_of(checked: Checked, model_store: Path, progress: Progress) -> Start:
    """The recipe's model as it is; one that the recipe makes is trained first.

    Args:
        model_store: where checkpoints are kept, so that an interrupted build goes on.
    """
    model = checked.recipe.model
    if not isinstance(model, NewModel):
        return Start(checked)
    with progress.step(f"train the new model ({model.family})"):
        return _trained(checked, model, model_store, progress)


def _trained(checked: Checked, model: NewModel, model_store: Path, progress: Progress) -> Start:
    recipe, task = checked.recipe, checked.task
    options = model.options.train.retrain
    selecting = checked
    if options.patience is not None:
        known, tried = task.for_selection(recipe, checked.train, checked.validation)
        selecting = dataclasses.replace(checked, train=known, validation=tried)
    workload = selecting.load()
    stage = Stage("retrain", "retrain", options)
    checkpoint = _checkpoint(workload, model, model_store)
    done = train(workload.model, options, context_of(workload, stage, progress, checkpoint))
    progress.say(f"  trained for {done.steps} steps, loss {done.losses[0]:.4f} → {done.losses[-1]:.4f}")
    for name, metrics in task.baselines(recipe, checked.facts, checked.train, checked.validation).items():
        progress.say(f"  for comparison, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    folder = Path(tempfile.mkdtemp(prefix="marpress-new-"))
    with quiet():
        workload.model.save_pretrained(folder)  # type: ignore[operator]  # transformers' own
    for file in checked.source.path.iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    source = directory_of(model, folder)
    if model.keep is not None:
        shutil.copytree(folder, model.keep, dirs_exist_ok=True)
    facts = inspect_model(source.path, task.auto_class, task=task.name, **task.inspected)
    return Start(dataclasses.replace(checked, source=source, facts=facts), checkpoint)


def _checkpoint(workload: Workload, model: NewModel, model_store: Path) -> Path:
    """Its name is a digest of everything that leads to the trained weights."""
    leads = {
        "model": workload.source.sha256,
        "max_length": workload.recipe.serve.max_length,
        "new": repr(model.options),  # dropout stands in config.json, not in the weights
        "train": workload.train_digest,
        "validation": hashlib.sha256(repr(workload.examples).encode()).hexdigest(),
        "torch": torch.__version__,
    }
    return model_store / CHECKPOINTS / f"new-{hashlib.sha256(canonical_json(leads)).hexdigest()[:24]}"
