"""sentence-similarity: how alike each of several sentences is to one, as the cosine of their vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.examples import largest_share
from handlers.inputs.checks import Parameter
from handlers.inputs.text import Encoded
from handlers.inputs.texts.against import Against, SourceSentence


class SentenceSimilarityHandler(BatchHandler[Against]):
    """Requests and answers as huggingface_hub's InferenceClient has them: one number a sentence, in their order."""

    parameters: ClassVar[dict[str, Parameter]] = {}
    input: SourceSentence

    def make_input(self, folder: Path) -> SourceSentence:
        return SourceSentence.open(folder, self.serving)

    def prepare(self, values: Sequence[Against], parameters: Mapping[str, Any]) -> list[Sequence[Encoded]]:
        """The source sentence, then the others."""
        return [self.input.encode([value], parameters) for value in values]

    def answers(self, found: Sequence[Found[Against]], parameters: Mapping[str, Any]) -> list[Any]:
        return [[float(f"{value:.7g}") for value in similarities(one.outputs)] for one in found]

    def compare(self, stored: Any, found: Any) -> float:
        """By position."""
        try:
            return largest_share(
                *({place: float(value) for place, value in enumerate(answer)} for answer in (stored, found))
            )
        except (TypeError, ValueError):
            return float("inf")


def similarities(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Cosines of the first of [n + 1] vectors with each of the others, [n] float64.

    Raises: ArithmeticError where a vector is not finite.
    """
    vectors = np.stack(outputs).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise ArithmeticError("the model's answer is not finite")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines: np.ndarray = vectors[1:] @ vectors[0]
    return cosines
