"""zero-shot-classification: a text against labels that the request brings, by a model of natural language inference."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.examples import largest_share
from handlers.inputs.checks import Parameter
from handlers.inputs.text import Encoded
from handlers.inputs.texts.candidates import Candidates, CandidateText
from handlers.tasks.text.classification import softmax


class ZeroShotClassificationHandler(BatchHandler[Candidates]):
    """Scores as transformers' ZeroShotClassificationPipeline computes them.

    serving: entailment: the id of the label that says a hypothesis follows.
    """

    parameters: ClassVar[dict[str, Parameter]] = {}
    input: CandidateText

    def make_input(self, folder: Path) -> CandidateText:
        return CandidateText.open(folder, self.serving)

    def prepare(self, values: Sequence[Candidates], parameters: Mapping[str, Any]) -> list[Sequence[Encoded]]:
        """Every text of an input with every label."""
        return list(self.input.encode_each(values, parameters))

    def answers(self, found: Sequence[Found[Candidates]], parameters: Mapping[str, Any]) -> list[Any]:
        return [
            self._told(one, one.value.labels_with(parameters), parameters.get("multi_label", False)) for one in found
        ]

    def _told(self, found: Found[Candidates], labels: Sequence[str], multi_label: bool) -> Any:
        value, logits = found.value, np.stack(found.outputs).astype(np.float64)
        if not np.isfinite(logits).all():
            raise ArithmeticError("the model's answer is not finite")
        each = [
            scored(rows, labels, self.serving["entailment"], multi_label)
            for rows in logits.reshape(len(value.texts), len(labels), -1)
        ]
        if value.form == "labels":
            return [{"label": label, "score": score} for label, score in each[0]]
        answers = [
            {"sequence": text, "labels": [label for label, _ in pairs], "scores": [score for _, score in pairs]}
            for text, pairs in zip(value.texts, each, strict=True)
        ]
        return answers[0] if value.form == "sequence" else answers

    def compare(self, stored: Any, found: Any) -> float:
        """By label, in whatever order they come."""
        try:
            return largest_share(*({item["label"]: item["score"] for item in answer} for answer in (stored, found)))
        except (KeyError, TypeError):
            return float("inf")


def scored(logits: np.ndarray, labels: Sequence[str], entailment: int, multi_label: bool) -> list[tuple[str, float]]:
    """Labels with their scores, the best first.

    Args:
        logits: [labels, classes], of a text with each label's hypothesis. labels: their names.
        entailment: the class that says a hypothesis follows. multi_label: each label against its own contradiction
            (class 0, or the last where 0 is entailment); else, of two labels or more, labels against each other.
    """
    if multi_label or len(labels) == 1:
        contradiction = -1 if entailment == 0 else 0
        scores = softmax(logits[:, [contradiction, entailment]])[:, 1]
    else:
        scores = softmax(logits[:, entailment])
    return [(labels[i], float(f"{scores[i]:.7g}")) for i in np.argsort(-scores, kind="stable")]
