"""The constraint that keeps a dense weight a product of two factors."""

from __future__ import annotations

import torch

from archiver.state.constraints import Constraint

Tensor = torch.Tensor


class LowRank(Constraint):
    """A·Bᵀ: the weight is computed from its two factors alone.

    Without gradients it is rounded once from float64, as the storage codec multiplies factors: the same bits come back.

    Args:
        a: [rows, rank], trained.
        b: [columns, rank], trained.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(a)
        self.b = torch.nn.Parameter(b)

    def forward(self, weight: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return (self.a.double() @ self.b.double().T).to(self.a.dtype)
        with torch.autocast(self.a.device.type, enabled=False):
            return self.a @ self.b.T
