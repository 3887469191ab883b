"""SparseGPT by hand, on weights that hold zeros already, and as a stage among others."""

from __future__ import annotations

import pytest
import torch
from cut_models import examples, tiny

from archiver.compression.modules import choose_modules
from archiver.compression.prune.options import L1, SparseGpt
from archiver.compression.prune.sparsegpt import inverse_factor, prune_compensated
from archiver.compression.prune.weights import l1, masks_of, sparsegpt
from archiver.state.constraints import state_of


def zeros(model: torch.nn.Module) -> tuple[int, int]:
    weights = [model.get_submodule(name).get_parameter("weight") for name in choose_modules(model, None)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def test_the_factor_by_hand():
    # H = 2·[[2, 0], [0, 8]] = diag(4, 16): H⁻¹ = diag(1/4, 1/16), U = diag(1/2, 1/4).
    factor = inverse_factor(torch.diag(torch.tensor([2.0, 8.0])), damping=1e-12)
    assert factor.tolist() == [[pytest.approx(0.5), 0.0], [0.0, pytest.approx(0.25)]]


def test_two_columns_go_and_the_third_pays_for_both():
    """What stays is the least squares answer for it: w₃ + (w₁·G₁₃ + w₂·G₂₃)/G₃₃, G = XᵀX."""
    gram = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 0.5], [1.0, 0.5, 4.0]], dtype=torch.float64)
    kept = torch.tensor([[False, False, True]])
    pruned, _ = prune_compensated(torch.tensor([[0.4, -0.6, 2.0]]), gram, kept=kept, damping=1e-12)
    assert pruned[0].tolist() == [0.0, 0.0, pytest.approx(2.0 + (0.4 * 1.0 - 0.6 * 0.5) / 4.0, rel=1e-6)]


@pytest.mark.parametrize("by_row", [False, True])
def test_zeros_stay_zeros_and_count(by_row):
    """Compensation must not bring back what an earlier round has pruned: the new mask lies within the old one."""
    torch.manual_seed(0)
    x = torch.randn(300, 32, dtype=torch.float64) @ torch.randn(32, 32, dtype=torch.float64)
    weight = torch.randn(16, 32)
    before = masks_of({"a": torch.rand(16, 32)}, 0.4, None, "row")["a"]
    pruned, mask = prune_compensated(weight * before, x.T @ x, sparsity=0.5, by_row=by_row, block=8)
    assert int((~mask).sum()) == 16 * 32 // 2
    assert not (mask & ~before).any()
    assert torch.equal(pruned != 0, mask)


def test_a_block_that_holds_more_zeros_than_its_share_takes_them_from_the_others():
    torch.manual_seed(0)
    weight = torch.randn(4, 16)
    weight[:, :8] = torch.where(torch.rand(4, 8) < 0.75, 0.0, weight[:, :8])
    assert (weight == 0).sum() > 16
    _, mask = prune_compensated(weight, torch.eye(16, dtype=torch.float64), sparsity=0.5, block=8)
    assert int((~mask).sum()) == 32
    assert not mask[weight == 0].any()


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_behind_another_pruning_the_count_is_exact(scope):
    model = tiny("bert")
    found = examples(model, "bert")
    l1(model, L1(sparsity=0.2, scope=scope), found)
    sparsegpt(model, SparseGpt(sparsity=0.5, scope=scope), found)
    assert zeros(model)[0] == zeros(model)[1] // 2
    for name, chain in state_of(model).constraints.items():
        weight = model.get_submodule(name).get_parameter("weight")
        assert not weight[~chain[0].mask].any(), "what l1 has pruned is still zero"


def test_no_zero_is_negative():
    model = tiny("llama")
    l1(model, L1(sparsity=0.5), examples(model, "llama"))
    for name in choose_modules(model, None):
        weight = model.get_submodule(name).get_parameter("weight")
        assert not weight[weight == 0].signbit().any()
