"""int8 with a scale per row: what every exporter makes of a planned weight."""

from __future__ import annotations

import torch


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row (per output channel): scale = max|w| / 127, q = round(w / scale).

    A row of zeros gets the scale 1, so that it comes back as zeros.

    Args:
        weight: [rows, columns] float.
    Returns: (q [rows, columns] int8 in −127 … 127, scale [rows, 1] float32).
    Source: Jacob et al. 2018, arXiv:1712.05877, § 3.
    """
    weight = weight.detach().float()
    peak = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale
