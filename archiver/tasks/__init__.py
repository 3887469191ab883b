"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from pathlib import Path

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, Metric, Task
from archiver.tasks.items.recommendation import Recommendation
from archiver.tasks.text.classification import TextClassification
from archiver.tasks.text.feature_extraction import FeatureExtraction
from archiver.tasks.text.generation import TextGeneration

__all__ = [
    "FALLBACK_VALIDATION",
    "FORWARD",
    "GENERATE",
    "TASKS",
    "Metric",
    "Task",
    "default_task",
    "foreign_serve_keys",
]

TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
    "feature-extraction": FeatureExtraction(),
    "text-generation": TextGeneration(),
    "recommendation": Recommendation(),
}


def foreign_serve_keys(task: str) -> set[str]:
    """Keys of `serve` that other tasks take and this one does not."""
    return {key for other in TASKS.values() for key in other.serve_keys} - set(TASKS[task].serve_keys)


def default_task(path: Path) -> str:
    """The task that a model directory is made for: by modules.json, else by the architecture that config.json names.

    Raises: UnsupportedModelError where the directory holds no model that can be read.
    """
    from archiver.models.files import architecture_of, read_directory

    architecture = architecture_of(read_directory(path).config) or ""
    embeds = "feature-extraction"
    if (path / "modules.json").is_file():
        return embeds
    made = (name for name, task in TASKS.items() if task.architectures and architecture.endswith(task.architectures))
    return next(made, embeds)
