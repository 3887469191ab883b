"""What feature extraction of any input shares: one vector per input, of length 1 where `normalize` says so.

Of a vector, a request may want the first `dimensions` alone: Kusupati et al. 2022, Matryoshka representation learning,
arXiv:2205.13147. Only models that were trained for it keep their quality so.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from handlers.errors import BadRequest
from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_bool, is_positive_int
from handlers.tasks.rows import RowHandler

Value = TypeVar("Value")


class VectorHandler(RowHandler[Value]):
    """Pooling happens in the graph; what a request may choose, here: dimensions, and normalisation (default:
    serving.json's) of what is left of them."""

    parameters: ClassVar[dict[str, Parameter]] = {
        "normalize": Parameter(is_bool, "true or false"),
        "dimensions": Parameter(is_positive_int, "a whole number from 1"),
    }

    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        width = rows.shape[-1]
        dimensions = parameters.get("dimensions", width)
        if dimensions > width:
            raise BadRequest(f"'dimensions' is {dimensions}; this model's vectors have {width}: allowed: 1 to {width}")
        rows = rows[..., :dimensions]
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
