"""Random inputs of the right shape for a model, by what it calls its main input: tokens of a text, items of a history,
pixels of an image, samples of a sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensor = torch.Tensor

_SIDE = 64  # of an image, where the model takes any size: divisible by what convolutions usually shrink it by


def random_inputs(model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments for one forward pass of a model.

    Args:
        model: a model of transformers; its weights are not looked at.
        rows: how many inputs.
        tokens: how long they are, where that is free (texts); what a config fixes (the patches of an image) stays.
    Returns: name → tensor [rows, …] on the CPU.
    Raises: LookupError for a kind of input that is not known here.
    """
    name = getattr(model, "main_input_name", "input_ids")
    if name not in MAKERS:
        raise LookupError(f"it takes {name}, for which no random inputs can be made; known: {', '.join(MAKERS)}")
    return MAKERS[name](model, rows, tokens, generator)


def image_shape(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a config is made for, or the part of it that is for images."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or _SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(getattr(config, "num_channels", None) or 3), int(height), int(width)


def _texts(model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    return _ids("input_ids", model, rows, tokens, generator)


def _ids(name: str, model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(0, model.get_input_embeddings().weight.shape[0], (rows, tokens), generator=generator)
    return {name: ids, "attention_mask": torch.ones_like(ids)}


def _items(model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    return _ids("item_ids", model, rows, tokens, generator)


def _images(model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, *image_shape(model.config), generator=generator)}


def _sounds(model: Any, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Samples that make at least `tokens` frames; for a model over a spectrogram one of the size that it takes."""
    config = model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not kernels or not strides:
        return {"input_values": torch.randn(rows, config.max_length, config.num_mel_bins, generator=generator)}
    samples = tokens
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return {"input_values": torch.randn(rows, samples, generator=generator)}


# By `main_input_name` of transformers' classes.
MAKERS: Mapping[str, Callable[[Any, int, int, torch.Generator], dict[str, Tensor]]] = {
    "input_ids": _texts,
    "item_ids": _items,
    "pixel_values": _images,
    "input_values": _sounds,
}
