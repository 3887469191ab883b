"""What discovery finds in one transformer layer: structures that can be cut, and scales that can be folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

Tensor = torch.Tensor

KINDS = ("heads", "neurons")


@dataclass(frozen=True, eq=False)
class Cut:
    """Structures of one kind in one layer that can be removed without touching anything else.

    Under grouped-query attention one structure is a key-value head with all queries that share it.

    Args:
        kind: "heads" or "neurons".
        consumer: the linear layer that reads the structures' outputs; names are those of `named_modules` of the model.
        columns: [in_features of the consumer] int64, the structure of each of its inputs.
        producers: linear layer, or Parameter of another module → [rows] int64, the structure of each row; −1: it stays.
        blocks: how many structures there are now.
        settings: module → attribute → its value per structure. An attribute "config.NAME" is NAME of the module's config.
    """

    kind: str
    consumer: str
    columns: Tensor
    producers: Mapping[str, Tensor]
    blocks: int
    settings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def grouped(self) -> bool:
        """Whether a structure is several query heads that share keys and values: it has fewer keys than queries."""
        rows, columns = (
            sum(int((owner == 0).sum()) for owner in self.producers.values()),
            int((self.columns == 0).sum()),
        )
        return self.kind == "heads" and columns < rows < 3 * columns

    def prefixed(self, prefix: str) -> Cut:
        """The same cut with `prefix` in front of every name."""
        return replace(
            self,
            consumer=prefix + self.consumer,
            producers={prefix + name: rows for name, rows in self.producers.items()},
            settings={(prefix + name).rstrip("."): values for name, values in self.settings.items()},
        )


@dataclass(frozen=True, eq=False)
class Fold:
    """A place where a scale of input channels can be moved into what comes before, exactly.

    Args:
        before: the norm or linear layer whose outputs `after` reads.
        after: the linear layers that read them, and nothing else does.
        rows: [in_features of `after`] int64, the output of `before` that each input is, or is proportional to.
        offset: a norm multiplies by offset + weight: 1 where its weight is stored as the difference from one.
    """

    before: str
    after: tuple[str, ...]
    rows: Tensor
    offset: float = 0.0

    def tied(self, channels: Tensor) -> Tensor:
        """Values of input channels, averaged over those that read the same output (grouped-query attention)."""
        rows = self.rows.to(channels.device)
        sums = torch.zeros(int(rows.max()) + 1, dtype=channels.dtype, device=channels.device)
        counts = torch.zeros_like(sums).index_add_(0, rows, torch.ones_like(channels))
        return sums.index_add_(0, rows, channels)[rows] / counts[rows]

    def apply(self, model: torch.nn.Module, scale: Tensor) -> None:
        """Divide the outputs of `before` by `scale` [in_features of `after`], multiply the columns of `after` by it."""
        before = model.get_submodule(self.before)
        weight = before.get_parameter("weight")
        divisor = torch.ones(weight.shape[0], dtype=weight.dtype, device=weight.device)
        divisor[self.rows.to(weight.device)] = scale.to(divisor)
        with torch.no_grad():
            if weight.dim() == 1:
                weight.copy_((weight + self.offset) / divisor - self.offset if self.offset else weight / divisor)
            else:
                weight.div_(divisor[:, None])
            if getattr(before, "bias", None) is not None:
                before.get_parameter("bias").div_(divisor)
            for name in self.after:
                model.get_submodule(name).get_parameter("weight").mul_(scale)

    def prefixed(self, prefix: str) -> Fold:
        """The same fold with `prefix` in front of every name."""
        return replace(self, before=prefix + self.before, after=tuple(prefix + name for name in self.after))


@dataclass(frozen=True, eq=False)
class LayerParts:
    """What was found in one layer.

    Args:
        name: the layer, from the model down.
        cuts: what can be cut; several of one kind where the layer has several feed-forward blocks.
        folds: norms first, then feed-forward, then attention.
        refused: kind ("heads", "neurons") → why it cannot be cut in this layer; for kinds without a cut.
    """

    name: str
    cuts: tuple[Cut, ...]
    folds: tuple[Fold, ...]
    refused: Mapping[str, str]

    def of_kind(self, kind: str) -> tuple[Cut, ...]:
        """The cuts of one kind."""
        return tuple(cut for cut in self.cuts if cut.kind == kind)

    def prefixed(self, prefix: str) -> LayerParts:
        """The same parts, for the layer of that name."""
        inside = f"{prefix}."
        return LayerParts(
            prefix,
            tuple(cut.prefixed(inside) for cut in self.cuts),
            tuple(fold.prefixed(inside) for fold in self.folds),
            self.refused,
        )
