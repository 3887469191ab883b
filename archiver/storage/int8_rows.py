"""int8 with a scale per row: what every exporter makes of a planned weight."""

from __future__ import annotations

import torch

_BLOCK = 1 << 22  # weights that are looked at together: what lies between them and their integers is large


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per row (per output channel): scale = max|w| / 127, q = round(w / scale).

    A row of zeros gets the scale 1, so that it comes back as zeros.

    Args:
        weight: [rows, columns] float.
    Returns: (q [rows, columns] int8 in −127 … 127, scale [rows, 1] float32).
    Source: Jacob et al. 2018, arXiv:1712.05877, § 3.
    """
    rows = max(1, _BLOCK // max(1, weight.shape[1]))
    blocks = weight.detach().split(rows)
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty((len(weight), 1), device=weight.device)
    for block, its_q, its_scale in zip(blocks, q.split(rows), scale.split(rows), strict=True):
        values = block.float()
        peak = values.abs().amax(dim=1, keepdim=True)
        its_scale.copy_(torch.where(peak > 0, peak / 127, torch.ones_like(peak)))
        its_q.copy_((values / its_scale).round().clamp(-127, 127))
    return q, scale
