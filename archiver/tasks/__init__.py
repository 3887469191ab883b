"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, Metric, Task
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
}


def foreign_serve_keys(task: str) -> set[str]:
    """Keys of `serve` that other tasks take and this one does not."""
    return {key for other in TASKS.values() for key in other.serve_keys} - set(TASKS[task].serve_keys)


def default_task(architecture: str | None, embeds: bool) -> str:
    """The task that a model directory is made for.

    Args:
        architecture: the first of config.json's `architectures`, or None.
        embeds: whether the directory is a sentence-transformers one (it has a modules.json).
    Returns: a key of TASKS; feature-extraction where nothing says more.
    """
    if not embeds and architecture is not None:
        for name, task in TASKS.items():
            if architecture.endswith(task.architectures):
                return name
    return "feature-extraction"
