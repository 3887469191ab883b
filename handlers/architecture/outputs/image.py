"""A model that takes pixels, with its head, as one torch module: images in, one row of numbers each out."""

from typing import Any

import torch


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

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with beside the model."""
        return {"features": self.features}

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
