"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, Metric, Task
from archiver.tasks.text.classification import TextClassification
from archiver.tasks.text.feature_extraction import FeatureExtraction
from archiver.tasks.text.generation import TextGeneration

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts

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


def default_task(facts: ModelFacts) -> str:
    """The task that a model directory is made for.

    Args:
        facts: of the model without its head.
    Returns: a key of TASKS; feature-extraction for a sentence-transformers directory, and where nothing says more.
    """
    embeds = "feature-extraction"
    if facts.pooling.declared:
        return embeds
    return next((name for name, task in TASKS.items() if task.made_for(facts)), embeds)
