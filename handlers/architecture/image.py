"""A model that takes pixels, with its head, as one torch module: images in, one row of numbers each out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.architecture.linear_layers import to_linear_layers
from handlers.architecture.structure import load_weights
from handlers.storage.packed import load_packed


class ImageModel(torch.nn.Module):
    """pixel_values [rows, channels, height, width] float32 → [rows, width] float32.

    Image classification: the logits. Features of an image, by what the model itself gives: `image_embeds` where it projects
    them (CLIP's image tower, as its get_image_features); `pooler_output` as transformers' image-feature-extraction with
    `pool` gives it (a pooler's, the mean of Swin and of convolutions, SigLIP's attention); else the vector of the first
    token. Not normalised: a request may choose that.
    """

    inputs = ("pixel_values",)

    def __init__(self, model: torch.nn.Module, features: bool = False) -> None:
        super().__init__()
        self.model = model
        self.features = features

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output: Any = self.model(pixel_values=pixel_values)
        if not self.features:
            logits: torch.Tensor = output.logits
            return logits
        for name in ("image_embeds", "pooler_output"):
            if (found := getattr(output, name, None)) is not None:
                vectors: torch.Tensor = found.flatten(1)  # convolutions leave [rows, width, 1, 1]
                return vectors
        hidden: torch.Tensor = output.last_hidden_state
        return hidden[:, 0] if hidden.dim() == 3 else hidden.mean(dim=(-2, -1))


def load_image_model(folder: Path, spec: Mapping[str, Any]) -> ImageModel:
    """The module of an archive whose runtime is torch: config.json and packed weights, no pickle, no remote code.

    Args:
        spec: `config` and `model`, files of the folder; `class`, transformers' class; `options` of its constructor;
            `features`.
    """
    import transformers

    config_dict = json.loads((folder / spec["config"]).read_text())
    config = transformers.CONFIG_MAPPING[config_dict["model_type"]].from_dict(config_dict)
    made: Any = getattr(transformers, spec["class"])
    with torch.random.fork_rng(devices=[]):
        model = made._from_config(config, attn_implementation="eager", dtype=torch.float32, **spec["options"])
    weights = load_packed(folder / spec["model"])
    tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
    return ImageModel(load_weights(to_linear_layers(model), folder, tensors), spec["features"])
