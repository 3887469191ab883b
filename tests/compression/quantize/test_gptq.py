"""GPTQ by hand: what one column's rounding does to the next, and what never changes."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.calibration import input_moments, watched_inputs
from archiver.compression.context import calibration_forward
from archiver.compression.quantize.algorithms.clipping import clipped_scales
from archiver.compression.quantize.algorithms.gptq import DAMPING, gptq
from archiver.compression.quantize.grids import round_to_nearest
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only
from archiver.state.constraints import Mask, constrain, state_of


def correlated(rows: int = 500, columns: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) @ mixing


def test_two_columns_by_hand():
    # Inputs that are always equal: H = [[1, 1], [1, 1]], so (nearly) all of an error can be made up for.
    # The row's step is 2·3/3 = 2 (2 bits, −4 … 2). 0.9 rounds to 0, and what it lost goes to 3.0, which becomes 3.9 and
    # saturates at 2; the other row: 1.9 → 2 is 0.1 too much, −3 becomes −3.1 → −4.
    weight = torch.tensor([[0.9, 3.0], [1.9, -3.0]])
    hessian = torch.ones(2, 2)
    values, scale, zero = gptq(weight, hessian, 2, None, symmetric=True, damping=1e-6)
    assert scale.tolist() == [[2.0], [2.0]]
    assert zero.tolist() == [[2.0], [2.0]]
    assert values.tolist() == [[0.0, 2.0], [2.0, -4.0]]


def test_errors_move_to_the_column_behind():
    # Step 0.2 (scale 2·1.5/15). Alone, 0.29 is rounded to 0.2 and −0.31 to −0.4; with equal inputs the 0.09 that is
    # missing in the first column is put on the second: −0.31 + 0.09 = −0.22 → −0.2. The sum of both is kept.
    weight = torch.tensor([[0.29, -0.31, 1.5]])
    hessian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    values, scale, _ = gptq(weight, hessian, 4, None, symmetric=True, damping=1e-6)
    step = scale.item()
    assert step == pytest.approx(0.2, rel=1e-3)
    assert values[0].tolist() == pytest.approx([step, -step, 7 * step])
    nearest, _, _ = round_to_nearest(weight, 4, None, True)
    assert nearest[0].tolist() == pytest.approx([step, -2 * step, 7 * step])


def test_independent_inputs_are_rounded_to_nearest():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    for act_order in (False, True):
        found = gptq(weight, torch.diag(torch.rand(32) + 0.1), 3, 8, False, act_order=act_order)
        for mine, nearest in zip(found, round_to_nearest(weight, 3, 8, False), strict=True):
            assert torch.equal(mine, nearest)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_come_closer_than_by_rounding(act_order, bits):
    # 160 columns: more than one block of 128, and groups of 40 that reach across its end.
    x = correlated(columns=160).double()
    weight = torch.randn(12, 160, generator=torch.Generator().manual_seed(1))
    values, scale, zero = gptq(weight, x.T @ x, bits, 40, True, act_order=act_order)
    nearest, _, _ = round_to_nearest(weight, bits, 40, True)

    def error(rounded: torch.Tensor) -> float:
        return (x @ (rounded - weight).double().T).square().sum().item()

    assert error(values) < 0.6 * error(nearest)
    steps = values.view(12, 4, 40) / scale[..., None]
    q = steps.round() + zero[..., None]
    assert ((q >= 0) & (q < 2**bits)).all()
    assert torch.equal((q - zero[..., None]) * scale[..., None], values.view(12, 4, 40))


def test_blocks_change_nothing(monkeypatch):
    x = correlated(columns=24).double()
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    whole = gptq(weight, x.T @ x, 3, 8, False)
    monkeypatch.setattr("archiver.compression.quantize.algorithms.gptq._BLOCK", 5)
    for mine, other in zip(gptq(weight, x.T @ x, 3, 8, False), whole, strict=True):
        assert torch.equal(mine, other)


def test_pruned_weights_and_silent_inputs():
    x = correlated()
    x[:, 5] = 0
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    weight[:, ::2] = 0
    values, scale, zero = gptq(weight, x.T @ x, 4, 4, True)
    assert not values[:, ::2].any()
    assert values.isfinite().all()
    assert (values[:, 5] - weight[:, 5]).abs().max() <= scale.max()
    nothing, _, _ = gptq(weight, torch.zeros(16, 16), 4, 4, True)
    assert torch.equal(nothing, round_to_nearest(weight, 4, 4, True)[0])


class Deep(torch.nn.Module):
    """Two linear layers one after the other, the second one's weight used a second time, and a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 16)
        self.first, self.second, self.third = (torch.nn.Linear(16, 16) for _ in range(3))
        self.third.weight = self.second.weight

    @property
    def layers(self) -> torch.nn.ModuleList:
        return torch.nn.ModuleList([self.first, self.second, self.third])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(self.table(input_ids)).relu()).relu())


def test_stage_rounds_layer_after_layer():
    batches = [{"input_ids": torch.randint(50, (1, 30))} for _ in range(4)]
    model = Deep()
    constrain(model, "first", Mask(torch.rand(16, 16) > 0.5))
    before = model.first.weight == 0
    options = WeightOnly(bits=4, group_size=8, algorithm="gptq", samples=4, targets=("*",))
    report = weight_only(model, options, calibrated_on(batches, model))
    assert "gptq on 4 training texts, damping 1%; ranges clipped" in report.notes
    assert "rounded to nearest, for want of inputs: table" in report.notes
    assert model.third.weight is model.second.weight
    assert not model.first.weight[before].any()
    for name in ("table", "first", "second", "third"):
        grid = state_of(model).constraints[name][-1]
        weight = model.get_submodule(name).weight
        assert grid.frozen
        assert grid.grouping()[0].shape == (len(weight), 2)
        assert torch.equal(grid(weight), weight)


def test_twins_moments_add_up():
    model = Deep()
    context = calibrated_on([{"input_ids": torch.randint(50, (1, 30))}], model)
    seen: dict[str, torch.Tensor] = {}
    with watched_inputs(model, ["second", "third"], lambda name, x: seen.update({name: x.detach().flatten(0, -2)})):
        calibration_forward(model, context.calibrate(1))
    both = input_moments(model, ["second"], context, 1)
    assert list(both) == ["second"]
    every = torch.cat([seen["second"], seen["third"]]).double()
    torch.testing.assert_close(both["second"].gram, every.T @ every, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both["second"].absolute, every.abs().sum(0).float())
    assert both["second"].tokens == 60
    assert DAMPING == 0.01


def test_modules_with_the_same_inputs_are_rounded_as_each_by_itself():
    from any_models import tiny

    from archiver.compression.quantize.algorithms.gptq import gptq_model
    from handlers.architecture.outputs.decoder import DecoderWithHead

    model = tiny("llama", "AutoModelForCausalLM", num_hidden_layers=1)
    ids = torch.randint(3, 100, (4, 16), generator=torch.Generator().manual_seed(1))
    context = calibrated_on([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], DecoderWithHead(model))
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    gram = input_moments(model, names[:1], context, 1)[names[0]].gram
    options = WeightOnly(bits=4, group_size=8, algorithm="gptq", samples=1)
    gptq_model(model, dict.fromkeys(names, 4), options, context)
    for name in names:
        scales = clipped_scales(before[name], gram.float(), 4, 8, True)
        alone = gptq(before[name], gram, 4, 8, True, act_order=True, scales=scales)[0]
        assert torch.equal(model.get_submodule(name).weight, alone)
