"""A task's model: found out about, loaded, or its modules alone, by the auto class that the task declares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from archiver.errors import UnsupportedModelError
from archiver.models import facts, load
from archiver.models.facts import ModelFacts
from archiver.models.files import architecture_of, read_directory
from archiver.models.source import ModelSource
from archiver.tasks.base import TASKS

if TYPE_CHECKING:
    import torch


def inspect_model(path: Path, task: str | None = None) -> ModelFacts:
    """The facts of a model directory for a task; for None those of the model without its head."""
    if task is None:
        return facts.inspect_model(path)
    return facts.inspect_model(path, _auto_class(task), task=task)


def load_model(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The task's model, with weights in fp32."""
    return load.load_model(source, _auto_class(task))


def skeleton(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The task's model by its config alone."""
    return load.skeleton(source, _auto_class(task))


def default_task(path: Path) -> str:
    """The task that a model directory is made for: by modules.json, else by the architecture that config.json names.

    Raises: UnsupportedModelError where the directory holds no model that can be read.
    """
    architecture = architecture_of(read_directory(path).config) or ""
    if (path / "modules.json").is_file():
        return "feature-extraction"
    if architecture.endswith("ForSequenceClassification"):
        return "text-classification"
    return "text-generation" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else "feature-extraction"


def _auto_class(task: str) -> str:
    if task not in TASKS:
        raise UnsupportedModelError(f"task {task!r} is not supported; allowed: {', '.join(TASKS)}")
    return TASKS[task].auto_class
