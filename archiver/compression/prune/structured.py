"""The stage `prune: {method: structured}`: attention heads, feed-forward neurons and whole layers are cut out.

What is cut is gone from the weights: the model that is left computes what the whole one would with those structures set to
zero. Under grouped-query attention a key-value head goes together with the queries that share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from archiver.architecture import Cut, cut_layer, cuts_of, keep_layers, layer_list, layer_parts, removable
from archiver.compression.context import StageContext
from archiver.compression.prune.compensation import compensate
from archiver.compression.prune.importance import block_scores, layer_order
from archiver.compression.prune.structured_options import Structured
from archiver.compression.prune.surgeon import surgeon_scores
from archiver.compression.report import StageReport, report_stage
from archiver.errors import UnsupportedModelError
from archiver.state.constraints import free, state_of

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
    """Structures that cannot be cut, layers that are not there, cuts that cut nothing or leave nothing.

    The model gets the shapes that it will have.
    """
    try:
        problems = _check_layers(model, options)
    except UnsupportedModelError as error:
        return [str(error) if options.layers is None else f"layers: {error}"]
    for what, share in (("heads", options.heads), ("neurons", options.neurons)):
        if share is None or problems:
            continue
        cuts = cuts_of(model, what)
        if not cuts:
            reasons = {parts.refused[what]: parts.name for parts in reversed(layer_parts(model))}
            problems += [f"{what} cannot be cut in {name}: {reason}" for reason, name in reasons.items()]
        for cut in cuts:
            left = kept_of(cut.blocks, share, what)
            if left == cut.blocks:
                problems.append(f"{what}: {share:g} of the {cut.blocks} that {cut.consumer} takes is none")
            else:
                cut_out(model, cut, torch.arange(left, device="cpu"))
    return problems


def _check_layers(model: torch.nn.Module, options: Structured) -> list[str]:
    count = len(layer_list(model)[1])
    if isinstance(options.layers, tuple):
        if wrong := [index for index in options.layers if index >= count]:
            return [
                f"layers: {', '.join(map(str, wrong))} of the list that stays: the model has layers 0 to {count - 1}"
            ]
        keep_layers(model, options.layers)
    elif options.layers is not None:
        may_go, removed = removable(model), round(count * options.layers)
        if not 0 < removed < count:
            return [f"layers: {options.layers:g} of {count} layers is {removed}; at least one must go and one stay"]
        if removed > len(may_go):
            return [f"layers: {options.layers:g} of {count} layers is {removed}; {len(may_go)} can be dropped"]
        gone = may_go[len(may_go) - removed :]
        keep_layers(model, [index for index in range(count) if index not in gone])
    return []


def kept_of(total: int, share: float, what: str) -> int:
    """How many of `total` stay when `share` is removed: at least one; neurons to the nearest multiple of 32 from 256 on."""
    left = max(1, total - round(total * share))
    return _stepped(left, total) if what == "neurons" else left


def _stepped(left: int, total: int) -> int:
    """The nearest multiple of 32 where there are 256 or more; `left` itself where that would cut nothing or everything."""
    nearest = round(left / NEURON_STEP) * NEURON_STEP
    return nearest if total >= _STEPPED_FROM and 0 < nearest < total else left


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
        # order.py lets no constraint come this far; a name must not outlive its layer
        if name.startswith(f"{prefix}."):
            free(model, name)
    keep_layers(model, kept)
    state.layer_origin = [before[index] for index in kept]


def _cut(model: torch.nn.Module, what: str, share: float, options: Structured, context: StageContext) -> str:
    cuts = cuts_of(model, what)
    if options.importance == "surgeon":
        scores = surgeon_scores(model, cuts, context, options.samples)
    else:
        scores = block_scores(model, cuts, options.importance, context, options.samples)
    keep = choose(scores, share, what, options.scope, comparable=options.importance == "surgeon")
    if options.compensate:
        compensate(model, cuts, keep, context, options.samples)
    counts = []
    for cut, kept in zip(cuts, keep, strict=True):
        counts.append(f"{len(kept)} of {cut.blocks}")
        cut_out(model, cut, kept)
    groups = " (groups of queries that share keys and values)" if _grouped(cuts) else ""
    same = counts[0] if len(set(counts)) == 1 else ", ".join(counts)
    refitted = ", what reads them is refitted" if options.compensate else ""
    return f"{what}{groups}: {same} stay{' in each layer' if len(set(counts)) == 1 else ''}{refitted}"


def cut_out(model: torch.nn.Module, cut: Cut, kept: Tensor) -> None:
    """Keep only the structures `kept` of one cut; constraints on the weights that change are forgotten."""
    for name in (*cut.producers, cut.consumer):
        free(model, name)
    cut_layer(model, cut, kept)


def _grouped(cuts: Sequence[Cut]) -> bool:
    return any(cut.grouped for cut in cuts)


def choose(
    scores: Sequence[Tensor], share: float, what: str, scope: str, *, comparable: bool = False
) -> list[Tensor]:  # fmt: skip
    """Indices that stay in each layer, rising: the highest scores, layer by layer or overall.

    Overall, each layer's scores are first divided by their mean unless they are comparable between layers: gradients and
    norms differ between layers by more than their importance does. At least one structure of a layer stays.
    """
    if scope == "layer":
        return [score.topk(kept_of(len(score), share, what)).indices.sort().values for score in scores]
    scaled = list(scores) if comparable else [score / score.mean().clamp(min=1e-12) for score in scores]
    total = sum(len(score) for score in scores)
    border = torch.cat(scaled).topk(max(len(scores), total - round(total * share))).values[-1]
    kept = []
    for score in scaled:
        count = max(1, int((score >= border).sum()))
        if what == "neurons":
            count = _stepped(count, len(score))
        kept.append(score.topk(count).indices.sort().values)
    return kept
