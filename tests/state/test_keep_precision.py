"""What stages leave as floats goes back to the checkpoint's precision; what is bound to values of its own does not."""

from __future__ import annotations

import pytest
import torch

from archiver.state.constraints import Constraint, Mask, constrain, state_of
from archiver.state.plan import QuantizationPlan
from archiver.state.precision import keep_precision

THIRD = 1 / 3  # 0.333984375 in bfloat16 (11 bits: 171 / 512), 0.333251953125 in float16 (1365 / 4096)


class Thirds(Constraint):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.full_like(weight, THIRD)


@pytest.fixture
def model():
    made = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("free", "masked", "bound", "factored")})
    for layer in made.values():
        torch.nn.init.constant_(layer.weight, THIRD)
        torch.nn.init.constant_(layer.bias, THIRD)
    return made


def values(model, name):
    return set(model[name].weight.detach().flatten().tolist())


@pytest.mark.parametrize(("dtype", "third"), [("bfloat16", 171 / 512), ("float16", 1365 / 4096)])
def test_by_hand(model, dtype, third):
    constrain(model, "masked", Mask(torch.eye(4, dtype=torch.bool)))
    constrain(model, "bound", Thirds())
    state_of(model).factors["factored"] = (torch.ones(4, 1), torch.ones(4, 1))
    exact = torch.tensor(THIRD).item()
    assert keep_precision(model, dtype) == 2
    assert values(model, "free") == {third}
    assert values(model, "masked") == {0.0, third}
    assert values(model, "bound") == values(model, "factored") == {exact}
    assert set(model["free"].bias.tolist()) == {exact}  # vectors are small
    assert keep_precision(model, dtype) == 0  # nothing is left to round


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_floats_stay(model, dtype):
    assert keep_precision(model, dtype) == 0
    assert values(model, "free") == {torch.tensor(THIRD).item()}


def test_what_will_be_integers_stays(model):
    model.quantization = QuantizationPlan("static-int8", linears=("free", "bound"), embeddings=("masked",))
    assert keep_precision(model, "bfloat16") == 1
    assert values(model, "factored") == {171 / 512}
    assert values(model, "free") == {torch.tensor(THIRD).item()}


def test_what_float16_cannot_hold_stays(model):
    with torch.no_grad():
        model["free"].weight[0, 0] = 1e6
    assert keep_precision(model, "float16") == 3
    assert values(model, "free") == {1e6, torch.tensor(THIRD).item()}
