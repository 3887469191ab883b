"""Storage codecs: how a compressed tensor lies on disk and comes back (storage is not compute).

A packed file is a safetensors file. A tensor `w` under the codec `int8-rows` lies there as `w` [rows, columns] int8 and
`w::scale` [rows, 1] float32, w ≈ int8 · scale; a tensor without a scale lies there as it is.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

SCALE = "::scale"


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row (per output channel): scale = max|w| / 127, q = round(w / scale).

    weight: [rows, columns] float. Returns q [rows, columns] int8 in −127 … 127, scale [rows, 1] float32.
    A row of zeros gets the scale 1, so that it comes back as zeros. Source: Jacob et al. 2018, arXiv:1712.05877, § 3.
    """
    weight = weight.detach().float()
    peak = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def dequantize_rows(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The inverse of quantize_rows, float32."""
    return q.float() * scale


def load_packed(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a packed file in float32 (or as stored, where no codec was used)."""
    stored = load_file(path)
    return {
        name: dequantize_rows(tensor, stored[name + SCALE]) if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }


def encoded_bytes(array, grouping=None) -> int:
    return array.nbytes
