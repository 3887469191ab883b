"""What the encoders' tasks share: texts in, one row of numbers per input out.

A subclass names its request parameters and turns one row into one answer.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.base import BatchHandler
from handlers.inputs.text import Text, TextInput


class EncoderHandler(BatchHandler[TextInput]):
    """The session's output for an input is [width] float32: logits, or a pooled vector."""

    input: Text

    @abstractmethod
    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        """Raw outputs [n, width] float32 to the numbers that are answered, same shape."""

    @abstractmethod
    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> Any:
        """One row of `scores` to its JSON answer."""

    def make_input(self, folder: Path) -> Text:
        return Text.open(folder, self.serving)

    def predict(self, inputs: Sequence[TextInput]) -> np.ndarray:
        """Raw outputs [n, width] float32 of [n] inputs, through the same encoding and sub-batches as served ones."""
        return _stacked(self.outputs_of(self.input.encode(inputs, {})))

    def answers(self, outputs: Sequence[np.ndarray], items: Sequence[Any], parameters: Mapping[str, Any]) -> list[Any]:
        numbers = self.scores(_stacked(outputs), parameters)
        if not np.isfinite(numbers).all():
            raise ArithmeticError("the model's answer is not finite")
        return [self.present(row, parameters) for row in numbers]


def _stacked(outputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(outputs) if outputs else np.zeros((0, 0), np.float32)
