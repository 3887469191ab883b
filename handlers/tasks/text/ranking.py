"""text-ranking: how relevant each of several texts is for a query, the most relevant first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.examples import largest_share
from handlers.inputs.checks import Parameter, is_bool
from handlers.inputs.text import Encoded
from handlers.inputs.texts.against import Against, Query
from handlers.protocols.openai import rerank
from handlers.protocols.request import Parse
from handlers.tasks.text.classification import sigmoid


class TextRankingHandler(BatchHandler[Against]):
    """Requests and answers as text-embeddings-inference's /rerank has them; scores are between 0 and 1 unless
    `raw_scores`, then the model's own numbers."""

    parameters: ClassVar[dict[str, Parameter]] = {
        "raw_scores": Parameter(is_bool, "true or false"),
        "return_text": Parameter(is_bool, "true or false"),
    }
    paths: ClassVar[Mapping[str, Parse]] = {"rerank": rerank.parse}
    input: Query

    def make_input(self, folder: Path) -> Query:
        return Query.open(folder, self.serving)

    def prepare(self, values: Sequence[Against], parameters: Mapping[str, Any]) -> list[Sequence[Encoded]]:
        """A text with the query each."""
        return [self.input.encode([value], parameters) for value in values]

    def answers(self, found: Sequence[Found[Against]], parameters: Mapping[str, Any]) -> list[Any]:
        return [self._told(one.value, relevance(one.outputs), parameters) for one in found]

    def _told(self, value: Against, scores: np.ndarray, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not np.isfinite(scores).all():
            raise ArithmeticError("the model's answer is not finite")
        told = scores if parameters.get("raw_scores", False) else sigmoid(scores)
        texts = [{"text": text} for text in value.others] if parameters.get("return_text", False) else None
        return [
            {"index": int(i), "score": float(f"{told[i]:.7g}")} | (texts[i] if texts else {})
            for i in np.argsort(-scores, kind="stable")
        ]

    def compare(self, stored: Any, found: Any) -> float:
        """By the texts' places in the request, in whatever order they come."""
        try:
            return largest_share(*({item["index"]: item["score"] for item in answer} for answer in (stored, found)))
        except (KeyError, TypeError):
            return float("inf")


def relevance(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The model's logits of [n] pairs as one number each, [n] float64.

    Of a model with two labels it is the second's logit less the first's: its sigmoid is the second label's share.
    """
    rows = np.stack(outputs).astype(np.float64)  # [n, 1] or [n, 2]
    scores: np.ndarray = rows[:, -1] if rows.shape[1] == 1 else rows[:, 1] - rows[:, 0]
    return scores
