"""text-scores: how probable each label of a text (or a pair) is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.evaluation.rounding import rounded
from archiver.tasks.base import Metric, shown_labels
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask
from handlers.tasks.text.classification import softmax

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe

_STARTER = """
# Fill in your data and uncomment: then the gate can measure what the model lost.
# data:
#   validation: dev.txt         # one text a line; what the gate is measured on

compress:
  - quantize: {method: weight-only, bits: 8}

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {overlap: 0.01}   # against the original model's probabilities on data.validation
"""


class TextScores(EncoderTask):
    """Labels are learnt by cross-entropy; two models are compared by how much of their probability falls together."""

    name = "text-scores"
    auto_class = "AutoModelForSequenceClassification"
    metrics = {
        "overlap": Metric(),  # mean over texts of Σ over labels of min(probability, the original's)
        "agreement": Metric(),  # share of texts whose most probable label is the original's
    }
    headlines = ("overlap", "agreement")
    fine = ("overlap",)
    handler = "handlers.tasks.text.scores:TextScoresHandler"
    starter = _STARTER

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        if facts.num_labels > 1 and not facts.multi_label:
            return []
        return [
            f"{source.source} scores each label by itself, {self.name} shares 1 among them: use text-classification"
        ]

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        found, original = softmax(measured.rows), softmax(measured.reference_rows)
        return rounded(
            {
                "overlap": float(np.minimum(found, original).sum(axis=1).mean()),
                "agreement": float((found.argmax(axis=1) == original.argmax(axis=1)).mean()),
            }
        )

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"labels": [facts.id2label[index] for index in range(facts.num_labels)]}

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from archiver.compression.retrain.objectives import softened_divergence

        return softened_divergence(outputs, teacher, temperature).mean()

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"labels: {shown_labels(list(facts.id2label.values()))}"]
