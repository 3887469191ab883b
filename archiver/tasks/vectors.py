"""What tasks share whose answer is a vector: there are no labels to learn from, only the original's vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from archiver.evaluation.metrics.embedding import vector_metrics
from archiver.tasks.base import Metric
from archiver.tasks.forward import ForwardTask, Measured

if TYPE_CHECKING:
    import torch


class Vectors(ForwardTask):
    """A vector for an input, of which the direction counts."""

    metrics = {
        "cosine": Metric(lowest=-1.0),  # mean, between original and compressed vectors
        "recall@10": Metric(),  # of the original model's 10 nearest neighbours
    }
    headlines: ClassVar[tuple[str, ...]] = ("cosine", "recall@10")
    fine = ("cosine",)
    learns_labels = False

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        return vector_metrics(measured.rows, measured.reference_rows)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.new_zeros(())

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        """1 − cosine, which is what the gate measures."""
        from torch.nn import functional

        return (1 - functional.cosine_similarity(outputs, teacher, dim=-1)).mean()
