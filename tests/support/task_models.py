"""Models loaded for a task by its name."""

from __future__ import annotations

from pathlib import Path

import torch

from archiver.models import facts, load
from archiver.models.facts import ModelFacts
from archiver.models.source import ModelSource
from archiver.tasks import TASKS


def inspect_model(path: Path, task: str | None = None) -> ModelFacts:
    """The facts of a model directory for a task; for None those of the model without its head."""
    return facts.inspect_model(path) if task is None else facts.inspect_model(path, TASKS[task].auto_class, task=task)


def load_model(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The task's model, with weights in fp32."""
    return load.load_model(source, TASKS[task].auto_class)


def skeleton(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The task's model by its config alone."""
    return load.skeleton(source, TASKS[task].auto_class)
