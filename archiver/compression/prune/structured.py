"""The stage `prune: {method: structured}`: attention heads, feed-forward neurons and whole layers are cut out.

What is cut is gone from the weights: the model that is left computes what the whole one would with those structures set to
zero. Under grouped-query attention a key-value head goes together with the queries that share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from archiver.compression.context import StageContext
from archiver.compression.prune.importance import block_scores, layer_order
from archiver.compression.prune.structured_options import Structured
from archiver.compression.report import StageReport, report_stage
from archiver.state.constraints import free, state_of
from handlers.architecture.anatomy import LayerParts, fit_attention, keep_layers, layer_list, layer_parts

Tensor = torch.Tensor

NEURON_STEP = 32  # kernels work on vectors: 512 neurons are faster than 506
_STEPPED_FROM = 256  # below, a step would be too large a part of the whole


def structured(model: torch.nn.Module, options: Structured, context: StageContext) -> StageReport:
    """Cut layers first, then heads and neurons of those that stay."""
    notes = []
    if options.layers is not None:
        count = len(layer_list(model)[1])
        kept = _kept_layers(model, options, context)
        _drop_layers(model, kept)
        notes.append(f"layers {', '.join(map(str, kept))} of {count} stay")
    for what, share in (("heads", options.heads), ("neurons", options.neurons)):
        if share is not None:
            notes.append(_cut(model, what, share, options, context))
    return report_stage("prune/structured", model, options, notes)


def check(model: torch.nn.Module, options: Structured) -> list[str]:
    """Layers that are not there, cuts that cut nothing or leave nothing; the model gets the shapes that it will have."""
    try:
        parts = layer_parts(model)
    except ValueError as error:
        return [str(error)]
    problems = []
    if isinstance(options.layers, tuple):
        if wrong := [index for index in options.layers if index >= len(parts)]:
            problems.append(
                f"layers: {', '.join(map(str, wrong))} of the list that stays: the model has layers 0 to {len(parts) - 1}"
            )
            return problems
        keep_layers(model, options.layers)
    elif options.layers is not None:
        removed = round(len(parts) * options.layers)
        if not 0 < removed < len(parts):
            return [
                f"layers: {options.layers:g} of {len(parts)} layers is {removed}; at least one must go and one stay"
            ]
        keep_layers(model, range(len(parts) - removed))
    for what, share in (("heads", options.heads), ("neurons", options.neurons)):
        if share is None:
            continue
        for item in layer_parts(model):
            total = _count(model, item, what)
            left = kept_of(total, share, what)
            if left == total:
                problems.append(
                    f"{what}: {share:g} of the {total} of {item.attention if what == 'heads' else item.down} is none"
                )
                continue
            cut_layer(model, item, what, torch.arange(left))
    return problems


def kept_of(total: int, share: float, what: str) -> int:
    """How many of `total` stay when `share` is removed: at least one; neurons to the nearest multiple of 32 from 256 on."""
    left = max(1, total - round(total * share))
    return _stepped(left, total) if what == "neurons" else left


def _stepped(left: int, total: int) -> int:
    """The nearest multiple of 32 where there are 256 or more; `left` itself where that would cut nothing or everything."""
    nearest = round(left / NEURON_STEP) * NEURON_STEP
    return nearest if total >= _STEPPED_FROM and 0 < nearest < total else left


@contextmanager
def without_layers(model: torch.nn.Module, gone: Sequence[int]) -> Iterator[None]:
    """Inside, the layers `gone` (their indices) are skipped."""
    name, layers = layer_list(model)
    parent, _, attribute = name.rpartition(".")
    owner, config = model.get_submodule(parent), model.config
    count, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)  # type: ignore[union-attr]
    stay = [index for index in range(len(layers)) if index not in gone]
    setattr(owner, attribute, torch.nn.ModuleList(layers[index] for index in stay))
    config.num_hidden_layers = len(stay)  # type: ignore[union-attr]
    if kinds:  # each layer keeps its own kind of attention, full or in a window
        config.layer_types = [kinds[index] for index in stay]  # type: ignore[union-attr]
    try:
        yield
    finally:
        setattr(owner, attribute, layers)
        config.num_hidden_layers = count  # type: ignore[union-attr]
        if kinds:
            config.layer_types = kinds  # type: ignore[union-attr]


def _kept_layers(model: torch.nn.Module, options: Structured, context: StageContext) -> list[int]:
    if isinstance(options.layers, tuple):
        return list(options.layers)
    count = len(layer_list(model)[1])
    removed = round(count * (options.layers or 0))
    gone = layer_order(model, removed, options.importance, context, options.samples)
    return [index for index in range(count) if index not in gone]


def _drop_layers(model: torch.nn.Module, kept: Sequence[int]) -> None:
    prefix = layer_list(model)[0]
    state = state_of(model)
    before = state.layer_origin or list(range(len(layer_list(model)[1])))
    for name in list(state.constraints):
        if name.startswith(
            f"{prefix}."
        ):  # order.py lets no constraint come this far; a name must not outlive its layer
            free(model, name)
    keep_layers(model, kept)
    state.layer_origin = [before[index] for index in kept]


def _cut(model: torch.nn.Module, what: str, share: float, options: Structured, context: StageContext) -> str:
    parts = layer_parts(model)
    consumers = {(item.output if what == "heads" else item.down): item for item in parts}
    blocks = {
        name: item.head_dim * item.heads // item.key_heads if what == "heads" else 1 for name, item in consumers.items()
    }
    producers = {
        name: (item.inputs if what == "heads" and not item.fused else item.up if what == "neurons" else ())
        for name, item in consumers.items()
    }
    scores = block_scores(model, blocks, producers, options.importance, context, options.samples)
    keep = choose(list(scores.values()), share, what, options.scope)
    counts = []
    for item, kept in zip(consumers.values(), keep, strict=True):
        counts.append(f"{len(kept)} of {_count(model, item, what)}")
        cut_layer(model, item, what, kept)
    groups = (
        " (groups of queries that share keys and values)"
        if what == "heads" and parts[0].heads > parts[0].key_heads
        else ""
    )
    same = counts[0] if len(set(counts)) == 1 else ", ".join(counts)
    return f"{what}{groups}: {same} stay{' in each layer' if len(set(counts)) == 1 else ''}"


def choose(scores: Sequence[Tensor], share: float, what: str, scope: str) -> list[Tensor]:
    """Indices that stay in each layer, rising: the highest scores, layer by layer or overall.

    Overall, each layer's scores are first divided by their mean: gradients and norms differ between layers by more than
    their importance does. At least one structure of a layer stays.
    """
    if scope == "layer":
        return [score.topk(kept_of(len(score), share, what)).indices.sort().values for score in scores]
    scaled = [score / score.mean().clamp(min=1e-12) for score in scores]
    total = sum(len(score) for score in scores)
    border = torch.cat(scaled).topk(max(len(scores), total - round(total * share))).values[-1]
    kept = []
    for score in scaled:
        count = max(1, int((score >= border).sum()))
        if what == "neurons":
            count = _stepped(count, len(score))
        kept.append(score.topk(count).indices.sort().values)
    return kept


def _count(model: torch.nn.Module, parts: LayerParts, what: str) -> int:
    return parts.key_heads if what == "heads" else model.get_submodule(parts.down).get_parameter("weight").shape[1]


def cut_layer(model: torch.nn.Module, parts: LayerParts, what: str, kept: Tensor) -> None:
    """Keep only the heads (key-value groups) or neurons `kept` of one layer."""
    if what == "neurons":
        for name in parts.up:
            _slice(model, name, 0, kept)
        _slice(model, parts.down, 1, kept)
        return
    queries = _features(kept, parts.head_dim * parts.heads // parts.key_heads)
    if parts.fused:
        width = parts.heads * parts.head_dim
        _slice(model, parts.inputs[0], 0, torch.cat([queries + offset * width for offset in range(3)]))
    else:
        keys = _features(kept, parts.head_dim)
        for name, rows in zip(parts.inputs, (queries, keys, keys), strict=True):
            _slice(model, name, 0, rows)
    _slice(model, parts.output, 1, queries)
    fit_attention(model, parts)


def _features(blocks: Tensor, width: int) -> Tensor:
    """The features of blocks: [0, 2] of width 2 → [0, 1, 4, 5]."""
    return (blocks[:, None] * width + torch.arange(width)).flatten()


def _slice(model: torch.nn.Module, name: str, dimension: int, index: Tensor) -> None:
    """Keep rows (0) or columns (1) of a linear layer."""
    layer = model.get_submodule(name)
    assert isinstance(layer, torch.nn.Linear)
    free(model, name)
    index = index.to(layer.weight.device) if layer.weight.device.type != "meta" else index
    weight = _taken(layer.weight.detach(), dimension, index)
    layer.weight = torch.nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if dimension == 0 and layer.bias is not None:
        layer.bias = torch.nn.Parameter(_taken(layer.bias.detach(), 0, index), requires_grad=layer.bias.requires_grad)
    layer.out_features, layer.in_features = layer.weight.shape


def _taken(tensor: Tensor, dimension: int, index: Tensor) -> Tensor:
    if tensor.device.type == "meta":  # only the shape is known there
        shape = list(tensor.shape)
        shape[dimension] = len(index)
        return tensor.new_empty(shape)
    return tensor.index_select(dimension, index).contiguous()
