"""What tasks share whose answer to one input is made of one row of numbers: class scores, a vector.

A subclass names its request parameters, its kind of input, and turns one row into one answer.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from handlers.base import BatchHandler, Found

Value = TypeVar("Value")


class RowHandler(BatchHandler[Value]):
    """The session's output for an input is [width] float32: logits, or a pooled vector."""

    @abstractmethod
    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        """Raw outputs [n, width] float32 to the numbers that are answered, same shape."""

    @abstractmethod
    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> Any:
        """One row of `scores` to its JSON answer."""

    def answers(self, found: Sequence[Found[Value]], parameters: Mapping[str, Any]) -> list[Any]:
        numbers = self.scores(rows_of(found), parameters)
        if not np.isfinite(numbers).all():
            raise ArithmeticError("the model's answer is not finite")
        return [self.present(row, parameters) for row in numbers]


def rows_of(found: Sequence[Found[Any]]) -> np.ndarray:
    """The outputs [n, …] of [n] inputs that have one item each."""
    if len(found) == 1:
        return found[0].outputs[0][np.newaxis]
    return np.stack([one.outputs[0] for one in found]) if found else np.zeros((0, 0), np.float32)
