"""What classifiers of any input share: a list of labels with scores per input, the best alone unless `top_k` says more."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_positive_int
from handlers.tasks.rows import RowHandler

Value = TypeVar("Value")


class ClassificationHandler(RowHandler[Value]):
    """Softmax over the labels; a sigmoid for each where the model is multi-label; a regression's number as it is.

    most: how many labels are answered where a request does not say it. A subclass may let requests set function_to_apply,
    the name of another function of ACTIVATIONS.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "top_k": Parameter(is_positive_int, "a whole number from 1; more than there are labels gives all of them")
    }
    most: ClassVar[int] = 1

    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        return ACTIVATIONS[parameters.get("function_to_apply", self.serving["activation"])](rows)

    @property
    def full_parameters(self) -> dict[str, Any]:
        """Every label, not the best alone."""
        return {"top_k": 1 << 30}

    def compare(self, stored: Any, found: Any) -> float:
        """By label, in whatever order they come."""
        try:
            return largest_share(*({item["label"]: item["score"] for item in answer} for answer in (stored, found)))
        except (KeyError, TypeError):
            return float("inf")

    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Sorted by score; equal scores in the order of the labels' ids."""
        labels, most = self.serving["labels"], parameters.get("top_k", self.most)
        best = (row.argmax(),) if most == 1 else np.argsort(-row, kind="stable")[:most]
        return [{"label": labels[i], "score": round(float(row[i]), 6)} for i in best]


def softmax(logits: np.ndarray) -> np.ndarray:
    """[n, labels] → [n, labels], rows sum to 1."""
    exponentials: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), written so that no exponential overflows."""
    small = np.exp(-np.abs(logits))
    shares: np.ndarray = np.where(logits >= 0, 1, small) / (1 + small)
    return shares


# By the name that serving.json holds; transformers' own pipeline chooses in the same way.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}
