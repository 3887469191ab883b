"""The walk of methods that learn: each layer is fitted to what it should give.

Two streams of hidden states go up through the layers: one gives each layer's targets, and one through the layers as they
have become gives its inputs. So a layer also makes up for those below. The first goes through the layers as they were
when the walk began, or through the untouched original's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archiver.architecture import layer_list
from archiver.compression.context import Batch, StageContext, stacked
from archiver.compression.walk.clock import Clock
from archiver.compression.walk.in_file import in_file
from archiver.compression.walk.layer_runs import LayerRuns, first_of
from archiver.compression.walk.saved import SavedWalk
from archiver.compression.walk.walk import by_layer, shared_between_layers, within
from archiver.errors import RecipeError
from archiver.state.constraints import state_of

Tensor = torch.Tensor


@dataclass(frozen=True)
class Block:
    """One layer, and what it is fitted on.

    Args:
        layer: the layer. names: of the modules to change, from the model down. prefix: of the layer's modules, with a dot.
        calls: (positional arguments, named ones) of each batch. targets: [rows, length, width] each, what it should give.
    """

    layer: torch.nn.Module
    names: Sequence[str]
    prefix: str
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    targets: Sequence[Tensor]

    def gives(self, index: int, weights: Mapping[str, Tensor]) -> Tensor:
        """What the layer gives for one batch with other weights.

        Args:
            weights: module name, from the model down → weight.
        """
        arguments, named = self.calls[index]
        inside = {f"{name.removeprefix(self.prefix)}.weight": weight for name, weight in weights.items()}
        found: Tensor = first_of(torch.func.functional_call(self.layer, inside, arguments, named))
        return found


def walk_blocks(
    model: torch.nn.Module,
    names: Sequence[str],
    context: StageContext,
    samples: int,
    visit: Callable[[Block], Mapping[str, Tensor]],
    *,
    method: str,
    teacher: bool = False,
) -> dict[str, Tensor]:
    """Visit the layers that hold these modules, from the lowest to the highest; goes on where it was interrupted.

    Args:
        names: of modules within layers.
        context: gives calibration texts, and says where checkpoints lie.
        samples: calibration texts.
        visit: changes the layer's weights in place, and gives tensors to keep, by any names.
        method: what the progress is said of.
        teacher: targets are those of the untouched original. Of layers that are gone the kept layer below takes over the
            work: its target is what the original gives to the next layer that was kept.
    Returns: all that the visits gave to keep.
    Raises: RecipeError for a model whose layers cannot be run by themselves.
    """
    with in_file(model, None if context.checkpoint is None else context.checkpoint.parent) as done:
        groups = by_layer(model, names)
        saved = SavedWalk.of(context.checkpoint, model, names, method)
        runs = original = None
        batches = stacked(context.calibrate(samples))
        if all(layer is not None for layer, _ in groups) and not shared_between_layers(model, names):
            runs = LayerRuns.of(model, context.module, batches)
        if runs is not None:
            original = _of_the_original(model, context, batches) if teacher else runs.fork()
        if runs is None or original is None:
            raise RecipeError(
                f"{method} fits each layer by itself, and the layers of {type(model).__name__} cannot be run so: "
                "choose another algorithm"
            )
        kept, clock = dict[str, Tensor](), Clock(method, len(names), context.say)
        behind = _places_behind(model, len(runs.layers), len(original.layers) if teacher else len(runs.layers))
        try:
            for place, (layer, group) in enumerate(groups):
                assert layer is not None
                original.go_to(behind[layer])  # while this layer still is what it was
                found = saved.restored(place)
                if found is None:
                    runs.go_to(layer)
                    clock.resumed()
                    prefix = f"{layer_list(model)[0]}.{layer}."
                    found = dict(visit(Block(runs.layers[layer], group, prefix, runs.calls(), original.hidden())))
                    saved.keep(place, [*group, *within(model, layer)], found)
                    done()
                    clock.tick(group)
                else:
                    clock.skip(group)
                kept |= found
        finally:
            runs.close()
            original.close()
        return kept


def _of_the_original(model: torch.nn.Module, context: StageContext, batches: Sequence[Batch]) -> LayerRuns | None:
    """The untouched original's layers on the same texts, by the ids that it knows its tokens by."""
    old = state_of(model).old_ids
    if old is not None:
        batches = [{**batch, "input_ids": old[batch["input_ids"]]} for batch in batches]
    return LayerRuns.of(context.teacher.get_submodule("model"), context.teacher, batches)


def _places_behind(model: torch.nn.Module, count: int, original: int) -> list[int]:
    """For each layer now, the original's layer whose inputs are its target: the one that the next kept layer came from."""
    origin = state_of(model).layer_origin
    if origin is None or original == count:
        return list(range(1, count + 1))
    return [*origin[1:], original]
