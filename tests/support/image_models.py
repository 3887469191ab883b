"""Tiny random image models of many families of transformers, and the settings of their image processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

SIDE = 32
LABELS = ("cat", "dog", "owl")
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
_FIELDS: dict[str, dict[str, Any]] = {
    "vit": _TRANSFORMER,
    "deit": {**_TRANSFORMER, "architectures": ["DeiTForImageClassification"]},
    "beit": _TRANSFORMER,
    "dinov2": _TRANSFORMER,
    "clip": {"vision_config": _TRANSFORMER, "projection_dim": 16},
    "siglip": {"vision_config": _TRANSFORMER},
    "swin": {
        "image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    },
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2, "image_size": SIDE},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]},
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.35},
}  # fmt: skip
FAMILIES = tuple(_FIELDS)
_PROCESSOR = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "convnext": "ConvNextImageProcessor",
              "resnet": "ConvNextImageProcessor", "mobilenet_v2": "MobileNetV2ImageProcessor", "deit": "DeiTImageProcessor",
              "beit": "BeitImageProcessor", "dinov2": "BitImageProcessor"}  # fmt: skip
_SQUARE = {"size": {"height": SIDE, "width": SIDE}}
_CROPPED = {"size": {"shortest_edge": SIDE + 4}, "crop_size": {"height": SIDE, "width": SIDE}}


def tiny_image_model(family: str, auto: str = "AutoModelForImageClassification", **changes: Any) -> torch.nn.Module:
    """A model of the auto class with random weights of which none is zero, in eval mode, eager attention."""
    base = transformers.AutoConfig.for_model(family)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    fields = {**_FIELDS[family], **labels, **changes}
    config = type(base)(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, attn_implementation="eager", dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() >= 2:
                    fan = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
                    parameter.copy_(torch.randn(parameter.shape) / fan**0.5)
                elif name.endswith("weight"):
                    parameter.copy_(1 + 0.5 * torch.rand(parameter.shape))
                else:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
            for name, buffer in model.named_buffers():
                if name.endswith("running_var"):
                    buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model.eval()


def processor_settings(family: str) -> dict[str, Any]:
    """preprocessor_config.json for a tiny model of the family."""
    if family in ("convnext", "resnet"):
        sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875}
    else:
        sizes = _CROPPED if family in ("clip", "mobilenet_v2", "dinov2", "deit") else _SQUARE
    return {"image_processor_type": _PROCESSOR.get(family, "ViTImageProcessor"), **sizes}


def write_image_model(
    folder: Path, family: str, auto: str = "AutoModelForImageClassification", **changes: Any
) -> Path:  # fmt: skip
    """A model directory: config.json, weights and preprocessor_config.json."""
    tiny_image_model(family, auto, **changes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_settings(family)))
    return folder


def pixels(rows: int = 3) -> torch.Tensor:
    """[rows, 3, SIDE, SIDE] random."""
    return torch.randn(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
