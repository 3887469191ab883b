"""audio-classification: labels with their scores per recording, the five best unless `top_k` asks for others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_positive_int
from handlers.inputs.media.audio_file import Recording
from handlers.tasks.rows import RowHandler
from handlers.tasks.speech.audio import AudioHandler
from handlers.tasks.text.classification import ACTIVATIONS


class AudioClassificationHandler(AudioHandler, RowHandler[Recording]):
    """Softmax over the labels, or what `function_to_apply` names; transformers' pipeline answers the same.

    A model over a spectrogram of one length hears the beginning of a longer recording: AST some ten seconds.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "top_k": Parameter(is_positive_int, "a whole number from 1; more than there are labels gives all of them"),
        "function_to_apply": Parameter(lambda value: value in ACTIVATIONS, " or ".join(f'"{n}"' for n in ACTIVATIONS)),
    }

    @property
    def full_parameters(self) -> dict[str, Any]:
        """Every label."""
        return {"top_k": 1 << 30}

    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        return ACTIVATIONS[parameters.get("function_to_apply", self.serving["activation"])](rows)

    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Sorted by score; equal scores in the order of the labels' ids."""
        labels = self.serving["labels"]
        best = np.argsort(-row, kind="stable")[: parameters.get("top_k", 5)]
        return [{"label": labels[i], "score": round(float(row[i]), 6)} for i in best]

    def compare(self, stored: Any, found: Any) -> float:
        """By label, in whatever order they come."""
        try:
            return largest_share(*({item["label"]: item["score"] for item in answer} for answer in (stored, found)))
        except (KeyError, TypeError):
            return float("inf")
