"""The walk of methods that learn: each layer is fitted to what the layer gave before anything was changed.

Two streams of hidden states go up through the layers: one through the layers as they were, which gives each layer's
targets, and one through the layers as they have become, which gives its inputs. So a layer also makes up for those below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archiver.architecture import layer_list
from archiver.compression.context import StageContext, stacked
from archiver.compression.walk.clock import Clock
from archiver.compression.walk.layer_runs import LayerRuns, first_of
from archiver.compression.walk.saved import SavedWalk
from archiver.compression.walk.walk import by_layer, shared_between_layers, within
from archiver.errors import RecipeError

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
) -> dict[str, Tensor]:
    """Visit the layers that hold these modules, from the lowest to the highest; goes on where it was interrupted.

    Args:
        names: of modules within layers.
        context: gives calibration texts, and says where checkpoints lie.
        samples: calibration texts.
        visit: changes the layer's weights in place, and gives tensors to keep, by any names.
        method: what the progress is said of.
    Returns: all that the visits gave to keep.
    Raises: RecipeError for a model whose layers cannot be run by themselves.
    """
    groups = by_layer(model, names)
    saved = SavedWalk.of(context.checkpoint, model, names, method)
    runs = None
    if all(layer is not None for layer, _ in groups) and not shared_between_layers(model, names):
        runs = LayerRuns.of(model, context.module, stacked(context.calibrate(samples)))
    if runs is None:
        raise RecipeError(
            f"{method} fits each layer by itself, and the layers of {type(model).__name__} cannot be run so: "
            "choose another algorithm"
        )
    original, kept, clock = runs.fork(), dict[str, Tensor](), Clock(method, len(names), context.say)
    try:
        for place, (layer, group) in enumerate(groups):
            assert layer is not None
            original.go_to(layer + 1)  # while this layer still is what it was
            found = saved.restored(place)
            if found is None:
                runs.go_to(layer)
                clock.resumed()
                prefix = f"{layer_list(model)[0]}.{layer}."
                found = dict(visit(Block(runs.layers[layer], group, prefix, runs.calls(), original.hidden())))
                saved.keep(place, [*group, *within(model, layer)], found)
                clock.tick(group)
            else:
                clock.skip(group)
            kept |= found
    finally:
        runs.close()
        original.close()
    return kept
