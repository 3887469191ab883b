"""text-classification: one label of several, several of several, or a number for a text or a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.examples import Example
from archiver.evaluation.classification import classification_metrics
from archiver.tasks.base import Metric, shown_labels
from archiver.tasks.encoders import EncoderTask
from handlers.inputs.text import TextInput

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts

_STARTER = """
# Fill in your data and uncomment: then the model can be calibrated, and the gate can measure what it lost.
# data:
#   train: train.tsv            # .tsv, .csv, .jsonl or .txt, relative to this file; or hub://name[/config]:split
#   validation: dev.tsv         # what the gate is measured on
#   columns: {text: 0, label: 1}      # positions where the file has no header, else names; text_pair for pairs

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster; calibrated on data.train. Use it instead of weight-only

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {accuracy: 0.01}  # 0.01 is one point, against the original model on data.validation
#   min_speedup: 2.0            # against PyTorch eager fp32
#   max_size_mb: 50             # of the archive
"""


class TextClassification(EncoderTask):
    """Labels are learnt by cross-entropy; two models are compared by the divergence of their softened answers."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    metrics = {
        "accuracy": Metric(needs_label=True),
        "f1": Metric(needs_label=True),  # macro
        "cross_entropy": Metric(higher_is_better=False, needs_label=True),
        "agreement": Metric(),  # share of answers equal to the original model's
    }
    headlines = ("accuracy", "agreement")
    fine = ("cross_entropy", "agreement")
    handler = "handlers.tasks.text.classification:TextClassificationHandler"
    starter = _STARTER

    def metrics_of(
        self,
        outputs: np.ndarray,
        reference: np.ndarray,
        inputs: Sequence[TextInput],
        examples: Sequence[Example],
        facts: ModelFacts,
    ) -> dict[str, float]:
        if outputs.shape[1] == 1 and not facts.multi_label:
            return {}
        return classification_metrics(outputs, reference, examples, multi_label=facts.multi_label)

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        regression = facts.problem_type == "regression"
        sigmoid = facts.multi_label or facts.num_labels == 1
        return {
            "labels": [facts.id2label[index] for index in range(facts.num_labels)],
            "activation": "none" if regression else "sigmoid" if sigmoid else "softmax",
        }

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of one label; binary cross-entropy of labels [rows, width] float; squared error at width 1."""
        from torch.nn import functional

        if labels.dim() == 2:
            return functional.binary_cross_entropy_with_logits(outputs, labels)
        if outputs.shape[-1] == 1:
            return functional.mse_loss(outputs[:, 0], labels.to(outputs.dtype))
        return functional.cross_entropy(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        from torch.nn import functional

        from archiver.compression.retrain.objectives import softened_divergence

        if outputs.shape[-1] == 1:
            return functional.mse_loss(outputs, teacher)
        return softened_divergence(outputs, teacher, temperature).mean()

    def summary(self, facts: ModelFacts) -> list[str]:
        kind = "labels, each scored by itself" if facts.multi_label else "labels"
        return [f"{kind}: {shown_labels(list(facts.id2label.values()))}"]
