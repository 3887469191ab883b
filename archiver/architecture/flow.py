"""Which outputs of linear layers feed which inputs of another: the structures of a layer, from zero gradients.

No layout is assumed. Columns of a consumer and rows of its producers are nodes of a graph, joined where a row has an
influence on a column; a structure is a connected component of it. Separate, fused, interleaved and grouped projections,
gates and fused gates are all found by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from archiver.architecture.probe import LayerProbe, Reach, Run

Tensor = torch.Tensor


@dataclass(frozen=True)
class Structures:
    """columns: [in_features of the consumer] the structure of each; producers: name → [rows] likewise, −1 for none."""

    columns: Tensor
    producers: Mapping[str, Tensor]
    blocks: int


class Mixed(Exception):
    """Rows belong to several structures at once; the message says which and why."""


def components(probe: LayerProbe, run: Run, consumer: str) -> Structures:
    """The connected components of a consumer's inputs and the outputs that feed them: whole heads, or groups of heads."""
    x = run.inputs[consumer, 0]
    columns = torch.full((x.shape[-1],), -1)
    owners = _owners(probe, probe.behind(run, [x]))
    shared = {name: torch.zeros(len(owner), dtype=torch.bool) for name, owner in owners.items()}
    count = 0
    while bool((columns < 0).any()):
        member = torch.zeros(len(columns), dtype=torch.bool)
        member[int((columns < 0).nonzero()[0])] = True
        while True:
            reach = probe.behind(run, [x], member)
            grown = member | influenced(probe, run, consumer, reach.rows)
            if torch.equal(grown, member):
                break
            member = grown
        columns[member] = count
        for table in _tables(reach):
            for name, rows in table.items():
                shared[name] |= rows & (owners[name] >= 0)
                owners[name][rows] = count
        count += 1
    for name, owner in owners.items():
        owner[shared[name]] = -1  # of Parameters alone: rows of linear layers would have joined their structures
    return Structures(columns, owners, count)


def by_width(probe: LayerProbe, run: Run, consumer: str, width: int) -> Structures | None:
    """Structures of `width` columns each where rows that feed all of them stay with none (multi-query attention).

    None where there is only one such structure, or rows feed several but not all.
    """
    x = run.inputs[consumer, 0]
    count = x.shape[-1] // width
    columns = torch.arange(count).repeat_interleave(width)
    reached = [probe.behind(run, [x], columns == block) for block in range(count)]
    owners = _owners(probe, probe.behind(run, [x]))
    for name, owner in owners.items():
        feeds = torch.stack([_rows(reach, name, len(owner)) for reach in reached])  # [structures, rows]
        times = feeds.sum(0)
        if bool(((times > 1) & (times < count)).any()):
            return None
        owner[times == 1] = feeds.int().argmax(0)[times == 1]
    return Structures(columns, owners, count) if count > 1 else None


def neurons(probe: LayerProbe, run: Run, consumer: str) -> Structures:
    """One structure for each input of the consumer: 2·log2(in_features) gradients tell which input each row feeds.

    Raises: Mixed where a row feeds several inputs, or an input is fed by none.
    """
    x = run.inputs[consumer, 0]
    columns = torch.arange(x.shape[-1])
    owners = _owners(probe, probe.behind(run, [x]))
    known = codes(probe, run, consumer, columns, x.shape[-1])
    for name, owner in owners.items():
        code, single, reached = known[name]
        if name in probe.linears and bool((reached & ~single).any()):
            raise Mixed(f"each output of {name} reaches several inputs of {consumer}")
        owner[single] = code[single]
    fed = torch.zeros(len(columns), dtype=torch.bool)
    for owner in owners.values():
        fed[owner[owner >= 0]] = True
    if not bool(fed.all()):
        raise Mixed(f"{int((~fed).sum())} inputs of {consumer} are fed by no linear layer")
    return Structures(columns, owners, len(columns))


def codes(
    probe: LayerProbe, run: Run, consumer: str, numbers: Tensor, count: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Which number each row feeds, when the consumer's inputs bear `numbers` [in_features] below `count`.

    Returns: producer → (the number [rows], whether all inputs that the row feeds bear it [rows], whether it feeds any).
    """
    x = run.inputs[consumer, 0]
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for bit in range(max(1, (count - 1).bit_length())):
        marked = (numbers >> bit) & 1 == 1
        ones, zeros = probe.behind(run, [x], marked), probe.behind(run, [x], ~marked)
        for name in {*ones.rows, *zeros.rows, *ones.parameters, *zeros.parameters}:
            size = len(next(known[name] for known in _tables(ones, zeros) if name in known))
            one, zero = _rows(ones, name, size), _rows(zeros, name, size)
            code, single, reached = found.get(
                name, (torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool), torch.zeros(size) > 0)
            )
            found[name] = (code + (one.long() << bit), single & (one ^ zero), reached | one | zero)
    return found


def influenced(probe: LayerProbe, run: Run, consumer: str, rows: Mapping[str, Tensor]) -> Tensor:
    """[in_features] whether an input of the consumer changes when these rows do."""
    changed = {
        key: torch.where(rows[key[0]], probe.values[key] * 0.5 - 0.25, probe.values[key])
        for key in run.leaves
        if key[0] in rows
    }
    with torch.no_grad():
        other = probe.run(changed).inputs[consumer, 0]
    return (other != run.inputs[consumer, 0]).reshape(-1, other.shape[-1]).any(0)


def _tables(*reaches: Reach) -> Sequence[Mapping[str, Tensor]]:
    return [table for reach in reaches for table in (reach.rows, reach.parameters)]


def _rows(reach: Reach, name: str, size: int) -> Tensor:
    found = reach.rows.get(name, reach.parameters.get(name))
    return torch.zeros(size, dtype=torch.bool) if found is None else found


def _owners(probe: LayerProbe, reach: Reach) -> dict[str, Tensor]:
    return {name: torch.full((len(rows),), -1) for table in _tables(reach) for name, rows in table.items()}
