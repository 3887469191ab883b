"""What feature extraction of any input shares: one vector per input, of length 1 where `normalize` says so."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_bool
from handlers.tasks.rows import RowHandler

Value = TypeVar("Value")


class VectorHandler(RowHandler[Value]):
    """Pooling happens in the graph; normalisation here, since a request may choose it (default: serving.json's)."""

    parameters: ClassVar[dict[str, Parameter]] = {"normalize": Parameter(is_bool, "true or false")}

    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        if not parameters.get("normalize", self.serving["normalize"]):
            return rows
        unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
        return unit

    def compare(self, stored: Any, found: Any) -> float:
        """By position."""
        try:
            return largest_share(
                *({place: float(value) for place, value in enumerate(answer)} for answer in (stored, found))
            )
        except (TypeError, ValueError):
            return float("inf")

    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> list[float]:
        # Seven digits: what a float32 holds, and half the bytes of its spelling as a float64.
        return [float(f"{value:.7g}") for value in row.tolist()]
