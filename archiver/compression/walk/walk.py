"""The walk through the layers that methods which compensate errors take.

Each layer is visited once, with the moments of its inputs as the changed layers below it make them. The layers are run by
themselves where the model allows it (`LayerRuns`): twice each, once for what goes in and once, changed, for what comes out.
Where it does not, the whole model is run anew for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from archiver.architecture import layer_list
from archiver.compression.calibration import Moments, MomentsSeen, moments_on, watched_inputs
from archiver.compression.context import Batch, StageContext, stacked
from archiver.compression.walk.clock import Clock
from archiver.compression.walk.in_file import in_file
from archiver.compression.walk.layer_runs import LayerRuns
from archiver.compression.walk.saved import SavedWalk
from archiver.errors import UnsupportedModelError

Tensor = torch.Tensor
# (names of the modules of one layer, name → moments of its inputs) → tensors to keep, by any names; it changes the layer's
# weights in place, and no other layer's.
Visit = Callable[[Sequence[str], dict[str, Moments]], Mapping[str, Tensor]]


def walk(
    model: torch.nn.Module,
    names: Sequence[str],
    context: StageContext,
    samples: int,
    visit: Visit,
    *,
    method: str,
    key: str = "",
) -> dict[str, Tensor]:
    """Visit the layers that hold these modules, from the lowest to the highest; what lies outside of layers comes last.

    What each visit has changed and kept is written beside the stage's checkpoint: an interrupted walk goes on at the layer
    where it was.

    Args:
        names: of the modules to change.
        context: gives calibration texts, and says where checkpoints lie.
        samples: calibration texts.
        visit: is called once for each group of `by_layer`. Modules with the same inputs share one Moments object.
        method: what the progress is said of. key: tells apart walks of one stage that begin with the same weights.
    Returns: all that the visits gave to keep.
    Raises: RecipeError when no calibration text reaches one of the modules.
    """
    with in_file(model, None if context.checkpoint is None else context.checkpoint.parent) as done:
        groups = by_layer(model, names)
        saved = SavedWalk.of(context.checkpoint, model, names, f"{method} {key}")
        kept, clock = dict[str, Tensor](), Clock(method, len(names), context.say)
        place = 0
        while place < len(groups) and (found := saved.restored(place)) is not None:
            kept |= found
            clock.skip(groups[place][1])
            place += 1
        if place == len(groups):
            return kept
        clock.resumed()
        inputs = _inputs(model, names, context, samples)
        try:
            for index, (layer, group) in enumerate(groups[place:], place):
                moments = inputs(layer, group)
                done()
                given = visit(group, moments)
                del moments
                saved.keep(index, [*group, *within(model, layer)], given)
                kept |= given
                done()
                clock.tick(group)
        finally:
            inputs.close()
        return kept


class _Inputs:
    """The moments of a layer's inputs by running the whole model, for models whose layers cannot be run by themselves."""

    def __init__(self, model: torch.nn.Module, module: torch.nn.Module, batches: Sequence[Batch]) -> None:
        self.model, self.module, self.batches = model, module, batches

    def __call__(self, layer: int | None, group: Sequence[str]) -> dict[str, Moments]:
        return moments_on(self.model, group, self.module, self.batches)

    def close(self) -> None:
        """Nothing is held."""


class _LayerInputs(_Inputs):
    """The same by running the layers, one after another."""

    def __init__(
        self, model: torch.nn.Module, module: torch.nn.Module, batches: Sequence[Batch], runs: LayerRuns
    ) -> None:
        super().__init__(model, module, batches)
        self.runs = runs

    def __call__(self, layer: int | None, group: Sequence[str]) -> dict[str, Moments]:
        seen = MomentsSeen(self.model, group)
        if layer is not None:
            self.runs.go_to(layer)
        with watched_inputs(self.model, seen.watched, seen.see):
            if layer is None:
                self.runs.run_rest(seen.flush)
            else:
                self.runs.run_layer(seen.flush)
        return seen.moments()

    def close(self) -> None:
        self.runs.close()


def _inputs(model: torch.nn.Module, names: Sequence[str], context: StageContext, samples: int) -> _Inputs:
    batches = stacked(context.calibrate(samples))
    runs = None
    if not shared_between_layers(model, names):
        runs = LayerRuns.of(model, context.module, batches)
    if runs is None:
        return _Inputs(model, context.module, batches)
    return _LayerInputs(model, context.module, batches, runs)


def by_layer(model: torch.nn.Module, names: Sequence[str]) -> list[tuple[int | None, list[str]]]:
    """`names` in groups that are computed one after another: (number of the layer, its modules), the rest last as None.

    One group without number for a model without layers.
    """
    try:
        prefix, layers = layer_list(model)
    except UnsupportedModelError:
        return [(None, list(names))] if names else []
    groups: dict[int | None, list[str]] = {**{index: [] for index in range(len(layers))}, None: []}
    for name in names:
        index = name.removeprefix(f"{prefix}.").partition(".")[0]
        inside = name.startswith(f"{prefix}.") and index.isdigit()
        groups[int(index) if inside else None].append(name)
    return [(layer, group) for layer, group in groups.items() if group]


def shared_between_layers(model: torch.nn.Module, names: Sequence[str]) -> bool:
    """Whether a weight is read in several layers: its moments are those of all, and the whole model has to run."""
    try:
        prefix = f"{layer_list(model)[0]}."
    except UnsupportedModelError:
        return True
    readers: dict[int, set[str]] = {}  # weight → its places: numbers of layers, "" outside of them
    for name, module in model.named_modules(remove_duplicate=False):
        if (weight := getattr(module, "_parameters", {}).get("weight")) is not None:
            inside = name.startswith(prefix)
            readers.setdefault(id(weight), set()).add(name.removeprefix(prefix).partition(".")[0] if inside else "")
    weights = [model.get_submodule(name)._parameters.get("weight") for name in names if name.startswith(prefix)]
    return any(weight is not None and len(readers[id(weight)]) > 1 for weight in weights)


def within(model: torch.nn.Module, layer: int | None) -> list[str]:
    """Names of a layer and of the modules in it."""
    if layer is None:
        return []
    prefix, layers = layer_list(model)
    return [f"{prefix}.{layer}.{name}".rstrip(".") for name, _ in layers[layer].named_modules()]
