"""Pruning single weights: counts by hand, torch's own as a yardstick, masks that stay, bounds that are found."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_models import Head, examples, tiny
from stage_context import calibrated_on

from archiver.compression.modules import choose_modules
from archiver.compression.prune.gradual import cubic_sparsity, regrow
from archiver.compression.prune.options import L1, SparseGpt, Wanda, parse_n_m, parse_sparsity
from archiver.compression.prune.sparsegpt import n_of_m, prune_compensated
from archiver.compression.prune.weights import check, l1, leave, masks_of, sparsegpt, wanda
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from archiver.errors import GateFailed
from archiver.state.constraints import Mask, state_of


def test_scopes_by_hand():
    scores = {"a": torch.tensor([[1.0, 8.0], [7.0, 6.0]]), "b": torch.tensor([[2.0, 3.0], [4.0, 5.0]])}

    def kept(scope: str) -> list[list[list[bool]]]:
        return [mask.tolist() for mask in masks_of(scores, 0.5, None, scope).values()]

    assert kept("global") == [[[False, True], [True, True]], [[False, False], [False, True]]]
    assert kept("layer") == [[[False, True], [True, False]], [[False, False], [True, True]]]
    assert kept("row") == [[[False, True], [True, False]], [[False, True], [False, True]]]


def test_n_of_m_by_hand():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0]])
    assert n_of_m(scores, (2, 4)).tolist() == [[False, True, True, False, True, True, False, False]]
    assert n_of_m(scores, (1, 2)).sum() == 4


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_l1_is_torchs_global_unstructured(sparsity):
    from torch.nn.utils import prune

    model = tiny("bert")
    names = choose_modules(model, None)
    theirs = copy.deepcopy(model)
    pairs = [(theirs.get_submodule(name), "weight") for name in names]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=sparsity)
    report = l1(model, L1(sparsity=sparsity), examples(model, "bert"))
    total = sum(model.get_submodule(name).weight.numel() for name in names)
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in names)
    assert zeros == round(sparsity * total)
    assert report.notes[0].startswith(f"{zeros} of {total} weights in {len(names)} modules are zero")
    for name in names:
        assert torch.equal(model.get_submodule(name).weight, theirs.get_submodule(name).weight)
    assert not any(name.endswith(("embeddings", "classifier")) for name in state_of(model).constraints)


@pytest.mark.parametrize(("stage", "options"), [(l1, L1), (wanda, Wanda), (sparsegpt, SparseGpt)])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_pattern_is_exact_in_every_row(kind, stage, options):
    model = tiny(kind)
    stage(model, options(n_m="2:4"), examples(model, kind))
    for name in choose_modules(model, None):
        weight = model.get_submodule(name).weight
        assert ((weight != 0).reshape(weight.shape[0], -1, 4).sum(-1) == 2).all()
        (mask,) = state_of(model).constraints[name]
        assert isinstance(mask, Mask)
        assert mask.n_m == (2, 4)


def test_wanda_by_hand():
    """Inputs (1, 10): the larger weight on the quiet input goes, l1 would take the smaller one."""
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[3.0, 1.0]])
    moments = torch.tensor([1.0, 10.0])
    scores = {"a": module.weight.detach().abs() * moments}
    assert masks_of(scores, 0.5, None, "row")["a"].tolist() == [[False, True]]


def test_the_surgeons_step_by_hand():
    """One weight goes, the other makes up for it: w₂ += w₁·(XᵀX)₁₂/(XᵀX)₂₂ is the least squares answer."""
    gram = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    weight = torch.tensor([[0.5, 3.0]])
    # [H⁻¹]_11 = 4/14 and U_22² = 1/8: scores 0.25·3.5 against 9·8, so the first goes.
    pruned, mask = prune_compensated(weight, gram, sparsity=0.5, damping=1e-9)
    assert mask.tolist() == [[False, True]]
    assert pruned[0, 0] == 0
    assert pruned[0, 1].item() == pytest.approx(3.0 + 0.5 * 1.0 / 4.0, rel=1e-5)


@pytest.mark.parametrize("block", [4, 7, 64])
@pytest.mark.parametrize("by_row", [False, True])
def test_compensation_beats_the_same_mask_without_it(block, by_row):
    torch.manual_seed(0)
    x = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    weight = torch.randn(16, 24)
    pruned, mask = prune_compensated(weight, x.T @ x, sparsity=0.5, by_row=by_row, block=block)
    if by_row:
        assert (mask.sum(1) == 12).all()
    assert int((~mask).sum()) == 192
    assert torch.equal(pruned != 0, mask)
    magnitude = masks_of({"a": weight.abs()}, 0.5, None, "row" if by_row else "layer")["a"]

    def error(found: torch.Tensor) -> float:
        return float((x @ (weight - found).double().T).norm())

    assert error(pruned) < error(weight * mask)
    assert error(pruned) < error(weight * magnitude)
    again, _ = prune_compensated(weight, x.T @ x, kept=mask)
    assert error(again) < error(weight * mask)


def test_an_input_that_is_always_zero_does_no_harm():
    gram = torch.diag(torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=torch.float64))
    pruned, mask = prune_compensated(torch.ones(2, 4), gram, n_m=(2, 4))
    assert torch.isfinite(pruned).all()
    assert (mask.sum(1) == 2).all()


def test_a_bound_finds_the_sparsity():
    model = tiny("bert")
    found = examples(model, "bert")
    names = choose_modules(model, None)
    total = sum(model.get_submodule(name).weight.numel() for name in names)

    def share() -> float:
        return sum(int((model.get_submodule(name).weight == 0).sum()) for name in names) / total

    found.bounded = True
    found.measure = lambda: {"accuracy": 1 - share()}
    found.missed = lambda metrics: ["too much"] if metrics["accuracy"] < 0.37 else []
    report = l1(model, L1(), found)
    assert 0.61 < share() <= 0.63 + 1e-4
    assert "is the highest found that keeps" in report.notes[1]
    found.missed = lambda metrics: ["never"]
    with pytest.raises(GateFailed, match="no sparsity down to"):
        l1(tiny("bert"), L1(), found)


def test_cubic_schedule_by_hand():
    assert [cubic_sparsity(step, 4, 0.8) for step in range(5)] == pytest.approx([0.0, 0.4625, 0.7, 0.7875, 0.8])


def test_gradual_ends_exactly_and_masks_hold():
    model = tiny("bert")
    names = choose_modules(model, None)
    tuned = Retrain(epochs=1, learning_rate=1e-3, precision="fp32")
    found = examples(model, "bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    l1(model, L1(sparsity=0.6, schedule="gradual", steps=3, retrain=tuned), found)
    total = sum(model.get_submodule(name).weight.numel() for name in names)

    def zeros() -> int:
        return sum(int((model.get_submodule(name).weight == 0).sum()) for name in names)

    assert zeros() == round(0.6 * total)
    assert not torch.equal(model.state_dict()["classifier.weight"], before["classifier.weight"])
    train(model, tuned, found)
    assert zeros() == round(0.6 * total)
    assert all(len(chain) == 1 for chain in state_of(model).constraints.values())


def test_what_the_loss_asks_for_comes_back():
    """y = w₁x₁ + w₂x₂ with both pruned; only x₂ moves the loss, so w₂ comes back."""

    class Two(torch.nn.Module):
        inputs = ("input_ids", "attention_mask")

        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.layer = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False)])

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.encoder.layer[0](input_ids.float())

    model = Two()
    batch = {
        "input_ids": torch.tensor([[0, 5], [0, 3]]),
        "attention_mask": torch.ones(2, 2, dtype=torch.long),
        "labels": torch.tensor([1, 1]),
    }
    masks = {"encoder.layer.0": torch.tensor([[True, True], [False, False]])}
    with torch.no_grad():
        model.encoder.layer[0].weight.mul_(masks["encoder.layer.0"])
    tuned = Retrain(epochs=3, learning_rate=0.1, teacher="none", precision="fp32")
    final, line = regrow(
        model, masks, L1(sparsity=0.5, regrow=0.5, retrain=tuned), calibrated_on([batch], model)
    )  # fmt: skip
    assert final["encoder.layer.0"].tolist() == [[True, True], [False, True]]
    assert "1 of 2 pruned weights came back" in line
    weight = model.encoder.layer[0].weight
    assert weight[1, 0] == 0
    assert weight[1, 1] > 0


def test_regrow_counts():
    model = tiny("bert")
    names = choose_modules(model, None)
    tuned = Retrain(epochs=1, learning_rate=1e-3, precision="fp32")
    l1(model, L1(sparsity=0.5, regrow=0.1, retrain=tuned), examples(model, "bert"))
    total = sum(model.get_submodule(name).weight.numel() for name in names)
    zeros = sum(int((~state_of(model).constraints[name][0].mask).sum()) for name in names)
    assert zeros == round(0.5 * total) - round(0.1 * round(0.5 * total))


@pytest.mark.parametrize("value", [0, 1.0, 1, -0.1, "0.5", True, float("nan")])
def test_no_sparsity(value):
    with pytest.raises(ValueError, match="no sparsity"):
        parse_sparsity(value)


@pytest.mark.parametrize("value", ["4:4", "0:4", "2:64", "2/4", 2.4, None, "5:2"])
def test_no_pattern(value):
    with pytest.raises(ValueError, match="no pattern"):
        parse_n_m(value)
    assert parse_n_m("2:4") == "2:4"


@pytest.mark.parametrize(
    ("options", "bounded", "message"),
    [
        (L1(), False, "does not say how many weights go"),
        (L1(sparsity=0.5, n_m="2:4"), False, "both say how many"),
        (L1(n_m="2:4", regrow=0.1), False, "n_m is a fixed pattern"),
        (L1(schedule="gradual"), True, "need a sparsity"),
        (L1(sparsity=0.5, retrain=Retrain()), False, "put a stage"),
    ],
)
def test_options_that_do_not_go_together(options, bounded, message):
    assert any(message in line for line in options.mistakes(bounded))
    assert L1().mistakes(True) == []


def test_every_layer_that_m_does_not_divide_is_named():
    model = tiny("bert")
    found = check(model, L1(n_m="1:7"))
    assert all(name in found[0] for name in choose_modules(model, None))
    assert check(model, Wanda(sparsity=0.5, targets=("*word_embeddings",))) != []
    assert "'nowhere' matches no module" in check(model, L1(sparsity=0.5, targets=("nowhere",)))[1]


def test_a_table_can_be_pruned_when_it_is_named():
    model = tiny("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    l1(model, L1(sparsity=0.5, targets=("@embeddings", "@head")), examples(model, "llama"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert int((model.lm_head.weight == 0).sum()) == model.lm_head.weight.numel() // 2
    leave(model, {})
    assert Head(model)(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)).shape[-1] == 40
