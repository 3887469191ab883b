"""Every task there is: TASKS[name]. To add one (see CONTRIBUTING.md): a file here, one in handlers/tasks, a row below."""

from __future__ import annotations

from pathlib import Path

from archiver.tasks.base import FALLBACK_VALIDATION, FORWARD, GENERATE, SEQ2SEQ, Metric, Task
from archiver.tasks.image.classification import ImageClassification
from archiver.tasks.image.feature_extraction import ImageFeatureExtraction
from archiver.tasks.items.recommendation import Recommendation
from archiver.tasks.seq2seq.tasks import Summarization, Text2TextGeneration, Translation
from archiver.tasks.speech.classification import AudioClassification
from archiver.tasks.speech.recognition import CtcRecognition
from archiver.tasks.text.classification import TextClassification
from archiver.tasks.text.feature_extraction import FeatureExtraction
from archiver.tasks.text.fill_mask import FillMask
from archiver.tasks.text.generation.task import TextGeneration
from archiver.tasks.text.question_answering import QuestionAnswering
from archiver.tasks.text.ranking import TextRanking
from archiver.tasks.text.sentence_similarity import SentenceSimilarity
from archiver.tasks.text.token_classification import TokenClassification
from archiver.tasks.text.zero_shot_classification import ZeroShotClassification

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

# Of several tasks that a model suits, `init` takes the last one: what is more special stands further down.
TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
    "feature-extraction": FeatureExtraction(),
    "token-classification": TokenClassification(),
    "question-answering": QuestionAnswering(),
    "text-generation": TextGeneration(),
    "fill-mask": FillMask(),
    "text-ranking": TextRanking(),
    "zero-shot-classification": ZeroShotClassification(),
    "sentence-similarity": SentenceSimilarity(),
    "text2text-generation": Text2TextGeneration(),
    "summarization": Summarization(),
    "translation": Translation(),
    "image-feature-extraction": ImageFeatureExtraction(),
    "image-classification": ImageClassification(),
    "automatic-speech-recognition": CtcRecognition(),
    "audio-classification": AudioClassification(),
    "recommendation": Recommendation(),
}


def task_of(name: str, model: object) -> Task:
    """The task as it is for a recipe's model, as far as that lies in a folder here."""
    try:
        return TASKS[name].of_model(model) if isinstance(model, Path) else TASKS[name]
    except (OSError, ValueError):  # `check` says what is wrong with the model
        return TASKS[name]


def foreign_serve_keys(task: Task) -> set[str]:
    """Keys of `serve` that other tasks take and this one does not."""
    return {key for other in TASKS.values() for key in other.serve_keys} - set(task.serve_keys)


def default_task(path: Path) -> str:
    """The task that a model directory is made for: by modules.json, else by what its config.json and model card name.

    A model without a head gives features of what it takes: of a text, or of an image.

    Raises: UnsupportedModelError where the directory holds no model that can be read.
    """
    from archiver.models.files import read_directory

    config = read_directory(path).config
    if (path / "modules.json").is_file():
        return "feature-extraction"
    return next((name for name, task in reversed(TASKS.items()) if task.suits(path, config)), "feature-extraction")
