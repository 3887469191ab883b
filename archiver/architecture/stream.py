"""The stream of hidden states that a decoder's layers read and add to, and whether it can be turned.

Where all that read it stand behind norms that divide by the root mean square, the hidden states may be multiplied by any
orthogonal matrix R, and the model answers as before: table and writers are multiplied by R, readers by its inverse.
Source: Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024, theorem 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from archiver.architecture.cuts import close
from archiver.architecture.discovery import layer_parts
from archiver.architecture.folds import norm_offset
from archiver.architecture.layers import layer_list
from archiver.architecture.parts import KINDS, LayerParts
from archiver.architecture.probe import is_norm
from archiver.architecture.stand_in import stand_in
from archiver.errors import UnsupportedModelError

Tensor = torch.Tensor
Module = torch.nn.Module

_TOKENS = 7  # random hidden states that norms are tried on


@dataclass(frozen=True, eq=False)
class HeadValues:
    """Where the values of a layer's heads can be turned: what attention does between them weighs whole tokens.

    Args:
        before: the linear layer that gives them. after: the one that reads what attention makes of them.
        rows: [key-value heads, width] int64, outputs of `before`.
        columns: [key-value heads, queries, width] int64, the inputs of `after` that each becomes in each query head.
    """

    before: str
    after: str
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Stream:
    """Who writes to the stream and who reads it. Names are those of `named_modules` of the model.

    Args:
        width: of the hidden states.
        table: the embedding table, whose rows begin it. head: the linear layer that reads its end.
        readers: norm → the linear layers that read what it gives, and nothing else does; that of the head is the last.
        offsets: norm → 1 where its weight is stored as the difference from one, else 0.
        writers: linear layers whose outputs are added to it.
        values: of each layer whose heads' values can be turned by themselves.
    """

    width: int
    table: str
    head: str
    readers: Mapping[str, tuple[str, ...]]
    offsets: Mapping[str, float]
    writers: tuple[str, ...]
    values: tuple[HeadValues, ...]

    def tied(self, model: Module) -> bool:
        """Whether table and head have one weight."""
        return model.get_submodule(self.table).weight is model.get_submodule(self.head).weight


def table_and_head(model: Any) -> tuple[Module | None, Module | None]:
    """The modules that a model of transformers names as its input and its output embeddings; None for what it has not."""
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None, None


def residual_stream(model: Any) -> Stream:
    """Find the stream of a decoder as it is now; on the meta device too.

    Raises: UnsupportedModelError with the reason, where it cannot be turned.
    """
    names = {id(module): name for name, module in model.named_modules()}
    table, head = (names.get(id(found)) for found in table_and_head(model))
    kind = type(model).__name__
    if table is None or head is None:
        raise UnsupportedModelError(f"{kind} has no table of tokens, or no head that gives one number for each token")
    prefix, _ = layer_list(model)
    width = int(model.get_submodule(table).get_parameter("weight").shape[1])
    outside = {
        name
        for name, module in model.named_modules()
        if not name.startswith(f"{prefix}.") and name not in (table, head) and list(module.parameters(recurse=False))
    }
    last = [name for name in outside if is_norm(model.get_submodule(name))]
    if len(last) != 1 or len(outside) != 1:
        others = ", ".join(sorted(outside)) or "nothing"
        raise UnsupportedModelError(
            f"{kind} has {others} beside its layers, table and head: one norm before the head is expected"
        )
    readers: dict[str, tuple[str, ...]] = {}
    writers: list[str] = []
    values: list[HeadValues] = []
    for parts in layer_parts(model):
        readers |= _readers(model, parts, width)
        writers += [cut.consumer for cut in parts.cuts]
        values += _values(parts)
    readers[last[0]] = (head,)
    stream = Stream(width, table, head, readers, _offsets(model, readers, width), tuple(writers), tuple(values))
    if stream.tied(model) and type(model.get_submodule(table)) is not torch.nn.Embedding:
        kind = type(model.get_submodule(table)).__name__
        raise UnsupportedModelError(f"{table} is a {kind}, and shares its weight with {head}; an Embedding can do so")
    _once(model, [*writers, *(name for after in readers.values() for name in after)])
    return stream


def _readers(model: Module, parts: LayerParts, width: int) -> dict[str, tuple[str, ...]]:
    """Of one layer: norm → the linear layers behind it."""
    for kind in KINDS:
        if not parts.of_kind(kind):
            raise UnsupportedModelError(f"{parts.name}: {parts.refused.get(kind, f'its {kind} were not found')}")
    norms = {
        f"{parts.name}.{name}"
        for name, module in model.get_submodule(parts.name).named_modules()
        if is_norm(module) and len(module.get_parameter("weight")) == width
    }
    found = {fold.before: fold.after for fold in parts.folds if fold.before in norms}
    if bare := sorted(norms - found.keys()):
        raise UnsupportedModelError(
            f"{bare[0]}: what it gives is not read by linear layers alone, or is added to the hidden states"
        )
    if not found:
        raise UnsupportedModelError(f"{parts.name}: no norm was found before its linear layers")
    return found


def _values(parts: LayerParts) -> list[HeadValues]:
    """Of one layer; none where several structures share a value (multi-query attention)."""
    found = []
    for cut in parts.of_kind("heads"):
        for fold in parts.folds:
            if fold.after != (cut.consumer,):
                continue
            inputs = [(cut.columns == head).nonzero()[:, 0] for head in range(cut.blocks)]
            rows = [fold.rows[each].unique() for each in inputs]
            width, every = len(rows[0]), torch.cat(rows)
            if len(every) != width * cut.blocks or len(every.unique()) != len(every):
                continue
            columns = [
                torch.stack([each[fold.rows[each] == row] for row in own], 1)
                for each, own in zip(inputs, rows, strict=True)
            ]
            found.append(HeadValues(fold.before, cut.consumer, torch.stack(rows), torch.stack(columns)))
    return found


def _once(model: Module, names: list[str]) -> None:
    """UnsupportedModelError where a layer to turn is no plain linear layer, or several have one weight."""
    uses = Counter(id(model.get_submodule(name).get_parameter("weight")) for name in names if _is_plain(model, name))
    for name in names:
        if not _is_plain(model, name):
            kind = type(model.get_submodule(name)).__name__
            raise UnsupportedModelError(f"{name} is a {kind}; linear layers can be turned")
        if uses[id(model.get_submodule(name).get_parameter("weight"))] > 1:
            raise UnsupportedModelError(f"{name} shares its weight with another layer")


def _is_plain(model: Module, name: str) -> bool:
    return type(model.get_submodule(name)) is torch.nn.Linear


def _offsets(model: Module, readers: Mapping[str, tuple[str, ...]], width: int) -> dict[str, float]:
    """Norm → its offset; UnsupportedModelError for a norm that does more than divide by the root mean square.

    Tried with a reflection of random hidden states: what subtracts their mean does not commute with it.
    """
    found = {}
    with torch.device("cpu"), torch.no_grad():
        made = stand_in(model)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, _TOKENS, width, generator=generator)
        axis = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
        other = x - 2 * (x @ axis)[..., None] * axis
        for name in readers:
            norm = made.get_submodule(name)
            offset = norm_offset(norm, x)
            if offset is None:
                raise UnsupportedModelError(f"{name}: a {type(norm).__name__} does more than multiply by its weight")
            gain = norm.get_parameter("weight") + offset
            given = norm(x) / gain
            expected = given - 2 * (given @ axis)[..., None] * axis
            if getattr(norm, "bias", None) is not None or not close(norm(other) / gain, expected):
                raise UnsupportedModelError(
                    f"{name} is a {type(norm).__name__}; hidden states can be turned before norms that divide by their "
                    "root mean square alone (RMSNorm)"
                )
            found[name] = offset
    return found
