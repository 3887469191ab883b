"""The module of an archive whose runtime is torch: config.json and packed weights, no pickle, no remote code."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.architecture.linear_layers import to_linear_layers
from handlers.architecture.structure import load_weights
from handlers.storage.packed import load_packed


def load_module(folder: Path, spec: Mapping[str, Any]) -> torch.nn.Module:
    """The transformers model within the module that makes its answer.

    Args:
        folder: the archive. spec: serving.json's `session`: config, model, class (transformers' own), module
            ("module:class" of handlers.architecture) and the settings it is made with.
    """
    import transformers

    where, _, name = spec["module"].partition(":")
    kind = getattr(importlib.import_module(where), name)
    if hasattr(kind, "register"):  # a family of models that is not transformers' own
        kind.register()
    config_dict = json.loads((folder / spec["config"]).read_text())
    config = transformers.CONFIG_MAPPING[config_dict["model_type"]].from_dict(config_dict)
    made_of = getattr(transformers, spec["class"], None)
    # A family that is not transformers' own is known by its config alone.
    make = made_of._from_config if made_of is not None else transformers.AutoModel.from_config
    model = to_linear_layers(make(config, attn_implementation="eager", dtype=torch.float32))
    weights = load_packed(folder / spec["model"])
    pooler = getattr(model, "pooler", None)
    if pooler is not None and list(pooler.parameters()) and not any(name.startswith("pooler.") for name in weights):
        # As in the build: the answer is made without the pooler, whose weights do not travel.
        model.register_module("pooler", None)
    model = load_weights(model, folder, {name: torch.as_tensor(value) for name, value in weights.items()})
    made: torch.nn.Module = kind(model, **spec["settings"])
    return made
