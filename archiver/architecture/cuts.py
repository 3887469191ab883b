"""What can be cut out of a layer: found by what feeds what, offered only after a trial cut gave the same answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from archiver.architecture.flow import Mixed, Structures, by_width, components, neurons
from archiver.architecture.parts import KINDS, Cut
from archiver.architecture.probe import ROWS, LayerProbe, Run, holds_experts
from handlers.architecture.skeleton import CONFIG, set_setting

Tensor = torch.Tensor
Settings = Mapping[str, Mapping[str, int]]

TOLERANCE = 1e-4  # relative, of what the layers behind a trial cut take
_TRIALS = 100  # of sets of attributes that may have to follow a cut
_NONE = {
    "heads": "no linear layer was found that takes what attention makes of other linear layers' outputs, and nothing else",
    "neurons": "no pair of linear layers was found of which one takes the other's outputs, and nothing else",
}


@dataclass(frozen=True)
class Candidate:
    """A linear layer that is fed by linear layers of its own layer alone. used: rows that feed something else as well."""

    consumer: str
    kind: str
    structures: Structures
    used: Mapping[str, Tensor]


def candidates(probe: LayerProbe, run: Run) -> tuple[list[Candidate], dict[str, str]]:
    """Consumers with their structures, and kind → why a consumer has none."""
    found, refused = [], {}
    for name, linear in probe.linears.items():
        x = run.inputs.get((name, 0))
        if x is None or not isinstance(linear, torch.nn.Linear) or not x.requires_grad:
            continue
        reach = probe.behind(run, [x])
        if reach.entry or not reach.rows:
            continue
        kind = "heads" if probe.mixes(run, x) else "neurons"
        if probe.calls(run, name) != 1 or x.numel() != probe.tokens * x.shape[-1]:
            refused["neurons"] = (
                "its feed-forward layers are experts, and each sees only the tokens that are routed to it"
            )
            continue
        others = [value for key, value in run.inputs.items() if key != (name, 0)] + run.outputs
        used = probe.behind(run, others)
        try:
            structures = (components if kind == "heads" else neurons)(probe, run, name)
        except Mixed as error:
            refused[kind] = str(error)
            continue
        found.append(Candidate(name, kind, structures, used.rows | used.parameters))
    return found, refused


def find_cuts(
    probe: LayerProbe, run: Run, offered: list[Candidate], refused: dict[str, str]
) -> tuple[list[Cut], dict[str, str]]:
    """Verified cuts, and kind → reason for the kinds that have none."""
    cuts, reasons = [], dict(refused)
    for item in offered:
        cut, reason = _cut_of(probe, run, item)
        if cut is not None:
            cuts.append(cut)
        else:
            reasons[item.kind] = reason
    have = {cut.kind for cut in cuts}
    if any(holds_experts(module) for module in probe.modules.values()):
        reasons.setdefault("neurons", "its feed-forward layers are experts, held as tensors without linear layers")
    return cuts, {kind: reasons.get(kind, _NONE[kind]) for kind in KINDS if kind not in have}


def _cut_of(probe: LayerProbe, run: Run, item: Candidate) -> tuple[Cut | None, str]:
    """The verified cut of a candidate, or why there is none."""
    reads = _reads(probe, item)
    choices = [item.structures]
    if item.structures.blocks == 1 and item.kind == "heads":
        width = len(item.structures.columns)
        sizes = {value for _, _, value in reads} | {width // value for _, _, value in reads if width % value == 0}
        sizes = {size for size in sizes if 1 < size < width and width % size == 0}
        choices = [found for size in sorted(sizes) if (found := by_width(probe, run, item.consumer, size)) is not None]
    tied = f"all inputs of {item.consumer} belong together: one head, or an operation over all heads such as a norm"
    if not choices:
        return None, tied
    reason = ""
    for structures in choices:
        producers = {name: rows for name, rows in structures.producers.items() if bool((rows >= 0).any())}
        if structures.blocks < 2:
            return None, f"{item.consumer} takes one structure only"
        for name, rows in producers.items():
            if name in probe.linears and not isinstance(probe.linears[name], torch.nn.Linear):
                return None, f"{name} is factored: cut first, then factorize"
            if name in item.used and bool((item.used[name] & (rows >= 0)).any()):
                return None, f"the outputs of {name} feed more than {item.consumer}"
        draft = Cut(item.kind, item.consumer, structures.columns, producers, structures.blocks)
        cut, reason = _with_settings(probe, run, draft, reads)
        if cut is not None:
            return cut, ""
    if item.structures.blocks == 1:
        return None, tied
    return None, f"a trial cut of {item.consumer} could not be verified: {_outside(probe, choices[0].blocks) or reason}"


def _outside(probe: LayerProbe, blocks: int) -> str | None:
    """What the layer is given that has a part for each structure, such as biases of attention by position."""
    given = [("argument", item) for item in probe.args] + list(probe.kwargs.items())
    for name, item in given:
        if isinstance(item, Tensor) and item.dim() > 2 and {blocks, ROWS * blocks} & set(item.shape[:2]):
            return f"the layer is given {name} of shape {list(item.shape)}, with a part for each of them"
    return None


def _with_settings(
    probe: LayerProbe, run: Run, draft: Cut, reads: list[tuple[str, str, int]]
) -> tuple[Cut | None, str]:  # fmt: skip
    """The cut with the smallest set of attributes that makes its trials right."""
    follow = [(name, key, value // draft.blocks) for name, key, value in reads if value % draft.blocks == 0]
    follow.sort(
        key=lambda item: "head" not in item[1]
    )  # a hint for the order alone: every set is tried until one is right
    first, trials = "", 0
    for size in range(min(len(follow), 4) + 1):
        for chosen in combinations(follow, size):
            settings: dict[str, dict[str, int]] = {}
            for name, key, value in chosen:
                settings.setdefault(name, {})[key] = value
            cut = replace(draft, settings=settings)
            problem = verify(probe, run, cut)
            if problem is None:
                return cut, ""
            first, trials = first or problem, trials + 1
            if trials == _TRIALS:
                return None, first
    return None, first


def verify(probe: LayerProbe, run: Run, cut: Cut) -> str | None:
    """Why a layer with some structures cut is not the one with their consumer's columns at zero; None where it is.

    Everything else that linear layers take, and the layer's output, must stay what it was, and the consumer must take what
    it took in the columns that stay.
    """
    for kept in (torch.tensor([block for block in range(cut.blocks) if block != 1]), torch.tensor([cut.blocks - 1])):
        stays = torch.isin(cut.columns, kept)
        try:
            with trial(probe, cut, kept) as rows, torch.no_grad():
                found = probe.run(kept=rows)
        except Exception as error:  # whatever a layer says to shapes that it was not made for
            return " ".join(str(error).split())[:160] or type(error).__name__
        if found.inputs.keys() != run.inputs.keys() or len(found.outputs) != len(run.outputs):
            return "other layers are run after it"
        for key, x in run.inputs.items():
            expected = x[..., stays] if key[0] == cut.consumer else x
            if not close(found.inputs[key], expected):
                return f"{key[0]} takes other values after it"
        if not all(close(a, b) for a, b in zip(found.outputs, run.outputs, strict=True)):
            return "the layer's output changes"
    return None


@contextmanager
def trial(probe: LayerProbe, cut: Cut, kept: Tensor) -> Iterator[dict[str, Tensor]]:
    """Inside, the stand-in's layer has the attributes and Parameters of the cut one.

    Gives: linear layer → rows that stay.
    """
    rows: dict[str, Tensor] = {}
    before: list[tuple[Any, dict[str, Any]]] = []
    with ExitStack() as stack:
        for name, owner in cut.producers.items():
            stay = ((owner < 0) | torch.isin(owner, kept)).nonzero()[:, 0]
            if name in probe.linears:
                rows[name] = stay
            else:
                stack.enter_context(probe.parameter(name, stay))
        for name in {*cut.settings, *rows}:
            values: Any = vars(probe.modules[name])
            before.append((values, dict(values)))
        try:
            for name, stay in rows.items():
                probe.linears[name].out_features = len(stay)
            for name, follow in cut.settings.items():
                module = probe.modules[name]
                for key, value in follow.items():
                    set_setting(module, key, value * len(kept), vars(module).get("config"))
            yield rows
        finally:
            for changed, old in before:
                changed.clear()
                changed.update(old)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same within TOLERANCE of the largest value."""
    if a.shape != b.shape:
        return False
    return float((a - b).detach().abs().max()) <= TOLERANCE * max(1e-6, float(b.detach().abs().max()))


def _reads(probe: LayerProbe, item: Candidate) -> list[tuple[str, str, int]]:
    """(module, attribute, value) of whole numbers above 1 that the modules around a consumer read while they run.

    A module is around it when it holds the consumer or one of its producers; "config.NAME" is a field of its config.
    """
    names = [item.consumer, *(name for name in item.structures.producers if name in probe.linears)]
    holders = {""}
    for name in names:
        parts = name.split(".")[:-1]
        holders |= {".".join(parts[: end + 1]) for end in range(len(parts))}
    seen: dict[tuple[str, str], int] = {}
    with ExitStack() as stack:
        for name in sorted(holders, key=lambda text: -text.count(".") - bool(text)):
            module = probe.modules[name]
            config = vars(module).get("config")
            if config is not None:
                own = type(config).from_dict(config.to_dict())
                own._attn_implementation = config._attn_implementation
                stack.enter_context(_attribute(module, "config", own))
                stack.enter_context(_watched(own, name, CONFIG, seen))
            stack.enter_context(_watched(module, name, "", seen))
        with torch.no_grad():
            probe.run()
    return [(name, key, value) for (name, key), value in seen.items()]


@contextmanager
def _attribute(module: Any, key: str, value: Any) -> Iterator[None]:
    before = vars(module)[key]
    vars(module)[key] = value
    try:
        yield
    finally:
        vars(module)[key] = before


@contextmanager
def _watched(owner: Any, name: str, prefix: str, seen: dict[tuple[str, str], int]) -> Iterator[None]:
    """Inside, whole numbers above 1 that are read from `owner` are noted."""
    kind: Any = type(owner)

    def read(self: Any, key: str) -> Any:
        value = kind.__getattribute__(self, key)
        if type(value) is int and value > 1 and not key.startswith("_"):
            seen[name, prefix + key] = value
        return value

    owner.__class__ = type(kind.__name__, (kind,), {"__getattribute__": read})
    try:
        yield
    finally:
        owner.__class__ = kind
