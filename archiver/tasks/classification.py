"""What tasks share that give an input one label of several, several of several, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.evaluation.metrics.classification import classification_metrics
from archiver.tasks.base import Metric, shown_labels
from archiver.tasks.forward import ForwardTask, Measured

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.tasks.workload import Workload


class Classification(ForwardTask):
    """Labels are learnt by cross-entropy; two models are compared by the divergence of their softened answers.

    Examples have a `label`, as `archiver.data.examples.Example` has it.
    """

    metrics = {
        "accuracy": Metric(needs=("label",)),
        "f1": Metric(needs=("label",)),  # macro
        "cross_entropy": Metric(higher_is_better=False, needs=("label",)),
        "agreement": Metric(),  # share of answers equal to the original model's
    }
    headlines = ("accuracy", "agreement")
    fine = ("cross_entropy", "agreement")

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
