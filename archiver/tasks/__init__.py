"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from pathlib import Path

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, SEQ2SEQ, Metric, Task
from archiver.tasks.speech.classification import AudioClassification
from archiver.tasks.speech.recognition import CtcRecognition
from archiver.tasks.text.classification import TextClassification
from archiver.tasks.text.feature_extraction import FeatureExtraction
from archiver.tasks.text.generation import TextGeneration
from archiver.tasks.text.seq2seq import Summarization, Text2TextGeneration, Translation

__all__ = [
    "FALLBACK_VALIDATION",
    "FORWARD",
    "GENERATE",
    "SEQ2SEQ",
    "TASKS",
    "Metric",
    "Task",
    "default_task",
    "foreign_serve_keys",
    "task_of",
]

TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
    "feature-extraction": FeatureExtraction(),
    "text-generation": TextGeneration(),
    "text2text-generation": Text2TextGeneration(),
    "summarization": Summarization(),
    "translation": Translation(),
    "automatic-speech-recognition": CtcRecognition(),
    "audio-classification": AudioClassification(),
}


def task_of(name: str, model: Path | str | None) -> Task:
    """The task as it is for a recipe's model, as far as that lies in a folder here."""
    try:
        return TASKS[name].of_model(model) if isinstance(model, Path) else TASKS[name]
    except (OSError, ValueError):  # `check` says what is wrong with the model
        return TASKS[name]


def foreign_serve_keys(task: Task) -> set[str]:
    """Keys of `serve` that other tasks take and this one does not."""
    return {key for other in TASKS.values() for key in other.serve_keys} - set(task.serve_keys)


def default_task(path: Path) -> str:
    """The task that a model directory is made for: by modules.json, else by the architecture that config.json names.

    Where tasks of several kinds of input have architectures of one name, the model's main input decides.

    Raises: UnsupportedModelError where the directory holds no model that can be read.
    """
    from archiver.models.files import architecture_of, read_directory

    architecture = architecture_of(read_directory(path).config) or ""
    embeds = "feature-extraction"
    if (path / "modules.json").is_file():
        return embeds
    made = [name for name, task in TASKS.items() if task.architectures and architecture.endswith(task.architectures)]
    if len({TASKS[name].input_name for name in made}) > 1:
        import transformers

        taken = getattr(getattr(transformers, architecture, None), "main_input_name", None)
        made = [name for name in made if TASKS[name].of_model(path).input_name == taken] or made
    return next(iter(made), embeds)
