"""What can be cut and folded in each layer of a model, and how wide its keys and values are."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Any

import torch

from archiver.architecture.cuts import candidates, find_cuts
from archiver.architecture.folds import find_folds
from archiver.architecture.layers import is_linear, layer_list
from archiver.architecture.parts import KINDS, LayerParts
from archiver.architecture.probe import Capture, LayerProbe, capture, run_base, stand_in
from archiver.errors import UnsupportedModelError

Module = torch.nn.Module

_KNOWN: OrderedDict[str, LayerParts] = OrderedDict()  # what was found, by all that it depends on
_MOST_KNOWN = 256


def layer_parts(model: Module) -> list[LayerParts]:
    """The parts of each layer of a model as it is now; empty where no list of layers is found.

    Layers of one kind (modules, sizes and attributes) are looked at once, and remembered for the process.
    """
    try:
        prefix, layers = layer_list(model)
    except UnsupportedModelError:
        return []
    family = _family(model)
    kinds = [f"{family}/{_kind(layer, model)}" for layer in layers]
    if any(kind not in _KNOWN for kind in kinds):
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            _discover(model, kinds)
    found = [_KNOWN[kind].prefixed(f"{prefix}.{index}") for index, kind in enumerate(kinds)]
    while len(_KNOWN) > _MOST_KNOWN:
        _KNOWN.popitem(last=False)
    return found


def _discover(model: Module, kinds: list[str]) -> None:
    try:
        made = stand_in(model)
        layers = layer_list(made)[1]
        calls = capture(made, layers)
    except Exception as error:  # any model may fail in its own way, and then stays as it is
        reason = f"the model could not be traced: {' '.join(str(error).split())[:160]}"
        for kind in kinds:
            _KNOWN.setdefault(kind, _nothing(reason))
        return
    for kind, layer, call in zip(kinds, layers, calls, strict=True):
        if kind not in _KNOWN:
            _KNOWN[kind] = _parts(layer, call)
    if [call.order for call in calls] != list(range(len(calls))):
        for kind in kinds:
            _KNOWN[kind] = _nothing("its layers are not run one after another")


def _parts(layer: Module, call: Capture) -> LayerParts:
    try:
        probe = LayerProbe(layer, call)
        run = probe.run()
        offered, refused = candidates(probe, run)
        cuts, reasons = find_cuts(probe, run, offered, refused)
        return LayerParts("", tuple(cuts), tuple(find_folds(probe, run, offered)), reasons)
    except Exception as error:  # as above
        return _nothing(f"a layer could not be traced: {' '.join(str(error).split())[:160]}")


def _nothing(reason: str) -> LayerParts:
    return LayerParts("", (), (), dict.fromkeys(KINDS, reason))


def _family(model: Any) -> str:
    config = model.config.to_dict()
    text = json.dumps(
        {key: value for key, value in config.items() if key != "_name_or_path"}, sort_keys=True, default=str
    )
    return f"{type(model).__module__}.{type(model).__qualname__}/{hashlib.sha256(text.encode()).hexdigest()}"


def _kind(layer: Module, model: Any) -> str:
    """All of a layer that decides what is found in it."""
    lines = []
    for name, module in layer.named_modules():
        own = vars(module).get("config")
        values = {**vars(module), **({} if own is None or own is model.config else {"config": vars(own)})}
        plain = {
            key: str(value)
            for key, value in sorted(values.items())
            if not key.startswith("_")
            and key not in ("layer_idx", "training")
            and (
                isinstance(value, bool | int | float | str | type(None))
                or (key == "config" and isinstance(value, dict))
            )
        }
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
        lines.append(f"{name} {type(module).__qualname__} {plain} {shapes}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def kv_shapes(model: Module) -> list[tuple[int, int]]:
    """(key-value heads, width of a head) of each layer's cache, as the layers are now.

    Raises: UnsupportedModelError where the model keeps no keys and values.
    """
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            cache = getattr(run_base(stand_in(model), use_cache=True), "past_key_values", None)
    except Exception as error:  # as above
        raise UnsupportedModelError(f"{type(model).__name__} could not be traced: {error}") from error
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise UnsupportedModelError(f"{type(model).__name__} keeps no keys and values of its layers in a cache")
    return [(int(layer.keys.shape[1]), int(layer.keys.shape[3])) for layer in layers]


__all__ = ["is_linear", "kv_shapes", "layer_parts"]
