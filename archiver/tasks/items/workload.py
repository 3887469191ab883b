"""Histories as training batches: every place of a history learns what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archiver.tasks.forward_workload import ForwardWorkload
from archiver.tasks.workload import Batch
from handlers.inputs.items import pad_rows

if TYPE_CHECKING:
    import torch

    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe

IGNORED = -100  # the label of a place that teaches nothing
FULL = 20_000  # items up to which every item is scored at every place
_NEGATIVES = 2048  # items that a batch scores beside its own targets where there are more
_POOL = 50
MOST_SCORES = 1 << 27  # of all validation examples: 512 MB of the original's, and as much of the model's as it is now


class RecommendationWorkload(ForwardWorkload):
    """A workload of histories.

    A training batch has, beside item_ids and attention_mask, `candidates`: the items whose scores the module gives, for
    every place. Up to 20 000 items these are all, and the loss is the full softmax; beyond, the batch's own targets and
    others that the seed draws (Jean et al. 2015, arXiv:1412.2007, § 3). `labels` are places among the candidates.
    """

    @classmethod
    def load(
        cls,
        task: Any,
        recipe: Recipe,
        source: ModelSource,
        facts: ModelFacts,
        validation: list[Any],
        train: list[Any],
    ) -> Self:
        """As every task of one pass, with so many validation examples that their scores fit into memory."""
        step = max(1, -(-len(validation) * facts.vocab_size // MOST_SCORES))
        return super().load(task, recipe, source, facts, validation[::step], train)

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        import torch

        items = int(self.facts.vocab_size)
        generator = torch.Generator().manual_seed(seed)
        windows = pieces(
            [self.task.learnt(self.recipe, one) for one in self.train],  # type: ignore[attr-defined]
            self.recipe.serve.max_length,
        )
        order = torch.randperm(len(windows), generator=generator).tolist()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size * _POOL):
            pool = sorted(order[start : start + batch_size * _POOL], key=lambda i: len(windows[i]))
            for first in range(0, len(pool), batch_size):
                batches.append(_batch([windows[i] for i in pool[first : first + batch_size]], items, generator))
        return batches


def pieces(histories: Sequence[Sequence[int]], length: int) -> list[Sequence[int]]:
    """Histories in pieces of at most length + 1 items, so that every item but a history's first is a target once.

    Args:
        histories: any number of items each; those with fewer than two teach nothing.
        length: most items that the model looks at.
    """
    found = []
    for history in histories:
        end = len(history)
        while end > 1:
            found.append(history[max(0, end - length - 1) : end])
            end -= length
    return found


def _batch(windows: Sequence[Sequence[int]], items: int, generator: torch.Generator) -> Batch:
    import torch

    length = max(map(len, windows)) - 1
    arrays: dict[str, Any] = pad_rows([window[:-1] for window in windows], length)
    labels = np.full((len(windows), length), IGNORED, np.int64)
    for row, window in enumerate(windows):
        labels[row, : len(window) - 1] = window[1:]
    candidates = np.arange(items)
    if items > FULL:
        real = labels != IGNORED
        drawn = torch.randint(items, (_NEGATIVES,), generator=generator).numpy()
        candidates = np.union1d(labels[real], drawn)
        labels[real] = np.searchsorted(candidates, labels[real])
    tensors = {name: torch.from_numpy(array) for name, array in (arrays | {"candidates": candidates}).items()}
    return tensors | {"labels": torch.from_numpy(labels)}
