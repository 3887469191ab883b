"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, Metric, Task
from archiver.tasks.image.classification import ImageClassification
from archiver.tasks.image.feature_extraction import ImageFeatureExtraction
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
    "image-classification": ImageClassification(),
    "image-feature-extraction": ImageFeatureExtraction(),
}


def foreign_serve_keys(task: str) -> set[str]:
    """Keys of `serve` that other tasks take and this one does not."""
    return {key for other in TASKS.values() for key in other.serve_keys} - set(TASKS[task].serve_keys)


def default_task(path: Path) -> str:
    """The task that a model directory is made for: by modules.json, else by the architecture that config.json names.

    A model without a head gives features of what it takes: of a text, or of an image.

    Raises: UnsupportedModelError where the directory holds no model that can be read.
    """
    from archiver.models.files import architecture_of, read_directory

    config = read_directory(path).config
    architecture = architecture_of(config) or ""
    embeds = "feature-extraction"
    if (path / "modules.json").is_file():
        return embeds
    made = (name for name, task in TASKS.items() if task.architectures and architecture.endswith(task.architectures))
    return next(made, "") or ("image-feature-extraction" if _takes_images(config, architecture) else embeds)


def _takes_images(config: Mapping[str, Any], architecture: str) -> bool:
    """Whether transformers' class for a model takes images, alone or beside texts."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = architecture or MODEL_MAPPING_NAMES.get(config.get("model_type", ""), "")
    kind = getattr(transformers, name, None) if isinstance(name, str) and name else None
    return getattr(kind, "main_input_name", "") == "pixel_values" or "image" in getattr(kind, "input_modalities", ())
