"""text-scores: the probability of every label, by name."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from handlers.examples import largest_share
from handlers.inputs.checks import Parameter
from handlers.tasks.encoder import EncoderHandler
from handlers.tasks.text.classification import softmax


class TextScoresHandler(EncoderHandler):
    """Softmax over the labels; the answer is one JSON object in the order of the labels' ids."""

    parameters: ClassVar[dict[str, Parameter]] = {}

    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        return softmax(rows)

    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> dict[str, float]:
        return {label: round(score, 6) for label, score in zip(self.serving["labels"], row.tolist(), strict=True)}

    def compare(self, stored: Any, found: Any) -> float:
        """By label."""
        return largest_share(stored, found)
