"""Pruning in rounds and regrowth: the retraining inside, earlier masks, weights that several modules share."""

from __future__ import annotations

import pytest
import torch
from cut_models import examples, tiny

from archiver.compression.modules import choose_modules
from archiver.compression.prune.gradual import cubic_sparsity, gradually
from archiver.compression.prune.options import L1, ShortRetrain, SparseGpt, Wanda
from archiver.compression.prune.weights import check, l1, sparsegpt, wanda
from archiver.errors import GateFailed, RecipeError
from archiver.fields import options_of
from archiver.recipe.check import read_value
from archiver.recipe.yaml_tree import Problems, read_yaml
from archiver.state.constraints import Mask, constrain, state_of

TUNED = ShortRetrain(learning_rate=1e-3, precision="fp32")


def counted(model: torch.nn.Module) -> tuple[int, int]:
    weights = [model.get_submodule(name).get_parameter("weight") for name in choose_modules(model, None)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def test_one_epoch_unless_it_says_otherwise(tmp_path):
    """`retrain: {learning_rate: …}` within a pruning stage changes the rate, and not the number of epochs with it."""
    problems = Problems()
    node = read_yaml("learning_rate: 0.001", "recipe.yaml", tmp_path, problems)
    assert node is not None
    value = read_value(node, "retrain", options_of(L1)["retrain"][0], problems)
    assert (value.epochs, value.learning_rate, problems.lines()) == (1, 0.001, [])


def test_rounds_by_hand():
    """T = 2: s₁ = 0.8·(1 − 0.5³) = 0.7 and s₂ = 0.8; a training lies between them."""
    model = tiny("bert")
    seen: list[float] = []
    name = choose_modules(model, None)[0]
    weight = model.get_submodule(name).get_parameter("weight")

    def prune(sparsity: float | None) -> dict[str, torch.Tensor]:
        assert sparsity is not None
        seen.append(sparsity)
        return {name: torch.ones_like(weight, dtype=torch.bool)}

    before = model.classifier.weight.detach().clone()
    gradually(model, prune, 0.8, L1(sparsity=0.8, schedule="gradual", steps=2, retrain=TUNED), examples(model, "bert"))
    assert seen == pytest.approx([0.7, 0.8])
    assert not torch.equal(model.classifier.weight, before)
    assert cubic_sparsity(1, 2, 0.8) == pytest.approx(0.7)


def test_sparsegpt_in_rounds_ends_exactly():
    model = tiny("llama")
    tuned = ShortRetrain(learning_rate=1e-3, precision="fp32")
    sparsegpt(
        model, SparseGpt(sparsity=0.5, schedule="gradual", steps=2, retrain=tuned), examples(model, "llama")
    )  # fmt: skip
    assert counted(model)[0] == counted(model)[1] // 2


def test_what_an_earlier_stage_has_pruned_never_comes_back():
    model = tiny("bert")
    found = examples(model, "bert")
    l1(model, L1(sparsity=0.3), found)
    total = counted(model)[1]
    earlier, asked = round(0.3 * total), round(0.5 * total)
    wanda(model, Wanda(sparsity=0.5, scope="global", regrow=0.5, retrain=TUNED), found)
    assert counted(model)[0] == asked - round(0.5 * (asked - earlier))
    for name in choose_modules(model, None):
        first = state_of(model).constraints[name][0]
        assert isinstance(first, Mask)
        assert not model.get_submodule(name).get_parameter("weight")[~first.mask].any()


def test_a_layer_that_no_loss_reaches_gives_nothing_back():
    model = tiny("bert")
    model.get_submodule("bert").add_module("spare", torch.nn.Linear(32, 32))
    l1(model, L1(sparsity=0.5, scope="layer", regrow=0.2, retrain=TUNED), examples(model, "bert"))
    spare = model.get_submodule("bert.spare").get_parameter("weight")
    assert int((spare == 0).sum()) == 512


def test_wanda_looks_at_the_inputs_of_every_layer_that_shares_the_weight():
    """Two layers with one weight [1, 2]: the first sees only input 0, the second, much louder, only input 1."""

    class Pair(torch.nn.Module):
        inputs = ("input_ids", "attention_mask")

        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.layer = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(2)])
            self.encoder.layer[1].weight = self.encoder.layer[0].weight
            self.encoder.layer[0].weight.data = torch.tensor([[2.0, 1.0]])

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = input_ids.float()
            only = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 10.0])]
            return sum(layer(x * one) for layer, one in zip(self.encoder.layer, only, strict=True))

    from stage_context import calibrated_on

    model = Pair()
    batch = {"input_ids": torch.tensor([[1, 1]]), "attention_mask": torch.ones(1, 2)}
    wanda(model, Wanda(sparsity=0.5), calibrated_on([batch], model))
    # Scores 2·‖(1, 0)‖ = 2 and 1·‖(0, 10)‖ = 10.
    assert model.encoder.layer[0].weight.tolist() == [[0.0, 1.0]]
    assert model.encoder.layer[1].weight is model.encoder.layer[0].weight


def test_a_tied_table_is_weighed_by_the_inputs_of_the_head():
    model = tiny("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    options = Wanda(sparsity=0.5, targets=("@embeddings", "@head"))
    assert check(model, options) == []
    wanda(model, options, examples(model, "llama"))
    assert ((model.model.embed_tokens.weight == 0).sum(1) == 16).all()
    assert state_of(model).constraints["lm_head"] is state_of(model).constraints["model.embed_tokens"]
    model = tiny("llama")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert "model.embed_tokens is looked up" in check(model, options)[0]


def test_a_bound_that_no_sparsity_keeps_is_missed():
    """Exit 3, as with every bound: nothing is wrong with the recipe."""
    model = tiny("bert")
    found = examples(model, "bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found.bounded, found.measure, found.missed = True, dict, lambda metrics: ["never"]
    with pytest.raises(GateFailed, match="no sparsity down to 0.008 keeps the stage's bounds"):
        l1(model, L1(), found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not issubclass(GateFailed, RecipeError)


def test_a_mask_leaves_no_negative_zero():
    model = tiny("bert")
    name = choose_modules(model, None)[0]
    weight = model.get_submodule(name).get_parameter("weight")
    mask = weight.detach() > 0
    constrain(model, name, Mask(mask))
    assert not weight[~mask].signbit().any()
