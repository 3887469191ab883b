"""text-classification: one label of several, several of several, or a number for a text or a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.evaluation.classification import classification_metrics
from archiver.tasks.base import Metric, shown_labels
from archiver.tasks.forward import Measured
from archiver.tasks.text.encoder import EncoderTask

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.tasks.workload import Workload

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


def class_targets(labels: Sequence[Any], facts: ModelFacts) -> list[Any] | None:
    """Labels as a classifier's loss takes them: an id or a number each, or [labels] of zeros and ones (multi-label).

    Returns: one a label; None when some example has none.
    """
    if any(label is None for label in labels):
        return None
    if not facts.multi_label:
        kind = np.float32 if facts.num_labels == 1 else np.int64
        return [kind(label) for label in labels]
    targets = []
    for ids in labels:
        row = np.zeros(facts.num_labels, np.float32)
        row[list(ids if isinstance(ids, tuple) else (ids,))] = 1.0
        targets.append(row)
    return targets


class TextClassification(EncoderTask):
    """Labels are learnt by cross-entropy; two models are compared by the divergence of their softened answers."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    metrics = {
        "accuracy": Metric(needs=("label",)),
        "f1": Metric(needs=("label",)),  # macro
        "cross_entropy": Metric(higher_is_better=False, needs=("label",)),
        "agreement": Metric(),  # share of answers equal to the original model's
    }
    headlines = ("accuracy", "agreement")
    fine = ("cross_entropy", "agreement")
    handler = "handlers.tasks.text.classification:TextClassificationHandler"
    starter = _STARTER

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        outputs, multi_label = measured.rows, measured.facts.multi_label
        if outputs.shape[1] == 1 and not multi_label:
            return {}
        labels = [example.label for example in measured.examples]
        return classification_metrics(outputs, measured.reference_rows, labels, multi_label=multi_label)

    def targets(
        self, workload: Workload, examples: Sequence[Any], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        return class_targets([example.label for example in examples], workload.facts)

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
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from torch.nn import functional

        from archiver.compression.retrain.objectives import softened_divergence

        if outputs.shape[-1] == 1:
            return functional.mse_loss(outputs, teacher)
        return softened_divergence(outputs, teacher, temperature).mean()

    def summary(self, facts: ModelFacts) -> list[str]:
        kind = "labels, each scored by itself" if facts.multi_label else "labels"
        return [f"{kind}: {shown_labels(list(facts.id2label.values()))}"]
