"""A task's outputs as compression uses them: the losses to train with, and the metrics to judge a model by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from archiver.errors import DataError

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor], Tensor]
Distance = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


@dataclass(frozen=True)
class Objective:
    """The losses and the deciding metrics of one task.

    Args:
        distance: (outputs, the original's outputs, mask [rows, length] of real tokens, temperature) → how far apart they
            are, a scalar, the mean over rows or tokens.
        loss: (outputs, labels) → the task's own loss, likewise; None for a task that has no labels to learn from.
        predicts_tokens: the outputs are logits of the vocabulary at each place, and lose columns when tokens are dropped.
        headline: metric → whether higher is better, by preference: the first one that was measured is what `mixed:
            {max_drop}` is about.
        finest: metric → whether higher is better, by preference: the first one that was measured tells two states of a
            model apart most finely, and decides which epoch's weights are kept.
    """

    distance: Distance
    loss: Loss | None = None
    predicts_tokens: bool = False
    headline: Mapping[str, bool] = field(default_factory=dict)
    finest: Mapping[str, bool] = field(default_factory=dict)

    def fine_score(self, metrics: Mapping[str, float]) -> float:
        """One number of validation metrics, lower is better.

        Raises: DataError when none of `finest` was measured.
        """
        for name, higher_is_better in self.finest.items():
            if name in metrics:
                return -metrics[name] if higher_is_better else metrics[name]
        raise DataError("nothing can be measured on the validation data: give it labels")

    def headline_drop(self, original: Mapping[str, float], now: Mapping[str, float]) -> tuple[str, float]:
        """The headline metric and by how much it has become worse.

        Args:
            original, now: validation metrics of the original and of the model as it is now.
        Returns: (metric, drop): absolute where higher is better, else the increase as a share of the original's.
        Raises: DataError when none of `headline` was measured.
        """
        for name, higher_is_better in self.headline.items():
            if name in original and name in now:
                return name, original[name] - now[name] if higher_is_better else now[name] / original[name] - 1
        raise DataError("mixed: nothing can be measured on the validation data: give it labels")
