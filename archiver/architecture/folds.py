"""Where a scale of input channels can be folded into what comes before, exactly.

Only where nothing else reads what is divided by the scale, and all that lies between is proportional to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from archiver.architecture.cuts import Candidate, close
from archiver.architecture.flow import codes
from archiver.architecture.parts import Fold
from archiver.architecture.probe import LayerProbe, Run

Tensor = torch.Tensor

_MOST_QUERIES = 64  # that share one key


def find_folds(probe: LayerProbe, run: Run, offered: list[Candidate]) -> list[Fold]:
    """A layer's verified folds: norms, then feed-forward, then attention."""
    found = list(_norm_folds(probe))
    for kind in ("neurons", "heads"):
        for item in offered:
            if item.kind == kind:
                offers = _linear_folds(probe, run, item)
                found += [fold for fold in offers if _proportional(probe, run, item, fold)][:1]
    return found


def _norm_folds(probe: LayerProbe) -> Iterator[Fold]:
    run = probe.run(cut_norms=True)
    times = Counter(name for name, _ in run.norms)
    for (name, call), leaf in run.norms.items():
        flat = leaf.reshape(-1, leaf.shape[-1])
        if times[name] != 1 or len(flat) != probe.tokens:
            continue
        readers = {
            key
            for key, x in run.inputs.items()
            if x.shape[-1] == leaf.shape[-1] and torch.equal(x.reshape(-1, x.shape[-1]), flat)
        }  # fmt: skip
        others = [x for key, x in run.inputs.items() if key not in readers]
        others += [x for key, x in run.norm_inputs.items() if key != (name, call)] + run.outputs
        if not readers or (name, call) in probe.behind(run, others).norms:
            continue
        after = tuple(reader for reader in probe.linears if (reader, 0) in readers)
        if all(
            isinstance(probe.linears[reader], torch.nn.Linear) and probe.calls(run, reader) == 1 for reader in after
        ):
            offset = norm_offset(probe.norms[name], run.norm_inputs[name, call].detach())
            if offset is not None:
                yield Fold(name, after, torch.arange(leaf.shape[-1]), offset)


@torch.no_grad()
def norm_offset(norm: torch.nn.Module, x: Tensor) -> float | None:
    """0 where a norm multiplies by its weight, 1 where by 1 + weight; None where a scale cannot be taken out of either."""
    weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
    old, old_bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
    expected = norm(x)
    scale = torch.rand(len(old), generator=torch.Generator().manual_seed(0)) + 0.5
    try:
        for offset in (0.0, 1.0):
            weight.copy_((old + offset) / scale - offset)
            if bias is not None and old_bias is not None:
                bias.copy_(old_bias / scale)
            if close(norm(x) * scale, expected):
                return offset
    finally:
        weight.copy_(old)
        if bias is not None and old_bias is not None:
            bias.copy_(old_bias)
    return None


def _linear_folds(probe: LayerProbe, run: Run, item: Candidate) -> Iterator[Fold]:
    """Folds into a consumer from rows that feed one input each, or one input of each query head that shares them."""
    structures = item.structures
    if item.kind == "neurons":
        for name, owner in structures.producers.items():
            order = owner.argsort(stable=True)
            order = order[owner[order] >= 0]
            times = len(order) // structures.blocks
            if times and name in probe.linears and len(order) == times * structures.blocks:
                if torch.equal(owner[order], torch.arange(structures.blocks).repeat_interleave(times)):
                    for half in range(times):  # gate and up in one layer: one of the two halves
                        yield Fold(name, (item.consumer,), order.view(-1, times)[:, half])
        return
    size = int((structures.columns == 0).sum())
    if size * structures.blocks != len(structures.columns):
        return
    place = torch.zeros_like(structures.columns)  # of each input in its structure
    place[structures.columns.argsort(stable=True)] = torch.arange(size).repeat(structures.blocks)
    for queries in range(1, min(size // 2, _MOST_QUERIES) + 1):
        if size % queries:
            continue
        width = size // queries
        wanted = structures.columns * width + place % width
        for name, (code, single, _) in codes(probe, run, item.consumer, place % width, width).items():
            owner = structures.producers[name]
            single &= owner >= 0
            rows = single.nonzero()[:, 0]
            numbers = owner[rows] * width + code[rows]
            if name in probe.linears and len(numbers) == width * structures.blocks == len(set(numbers.tolist())):
                yield Fold(name, (item.consumer,), rows[numbers.argsort()][wanted])


def _proportional(probe: LayerProbe, run: Run, item: Candidate, fold: Fold) -> bool:
    """Whether dividing the rows of a fold by numbers above zero divides the consumer's inputs, and changes nothing else."""
    linears = (probe.linears[fold.before], probe.linears[item.consumer])
    used = item.used.get(fold.before)
    if not all(isinstance(linear, torch.nn.Linear) for linear in linears) or probe.calls(run, fold.before) != 1:
        return False
    if used is not None and bool(used[fold.rows].any()):
        return False
    value = probe.values[fold.before, 0]
    divisor = torch.ones(value.shape[-1])
    divisor[fold.rows] = (torch.rand(value.shape[-1], generator=torch.Generator().manual_seed(0)) + 0.5)[fold.rows]
    with torch.no_grad():
        x = probe.run({(fold.before, 0): value / divisor}).inputs[item.consumer, 0]
    return close(x * divisor[fold.rows], run.inputs[item.consumer, 0])
