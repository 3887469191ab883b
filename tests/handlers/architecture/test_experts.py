"""Fused experts as linear layers: the same numbers, on meta as well, through compression and a torch archive."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from any_models import SIZES, enlarge
from stage_context import calibrated_on

from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only
from archiver.export.torch_packed import export_packed
from archiver.state.plan import plan_of
from handlers.architecture.experts import Experts, experts_to_linear
from handlers.architecture.outputs.decoder import DecoderWithHead, load_decoder

# gated, with a shared expert, transposed with biases and a gate of its own, without a gate
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe"]


def fused(family: str) -> torch.nn.Module:
    import transformers

    base = transformers.AutoConfig.for_model(family)
    config = transformers.AutoConfig.for_model(family, **{k: v for k, v in SIZES.items() if hasattr(base, k)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = transformers.AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
        enlarge(model, mirrored=True)
    return model.eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 120, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_same_numbers(family: str) -> None:
    model = fused(family)
    expected = model(input_ids=ids()).logits
    names = set(model.state_dict())
    split = experts_to_linear(copy.deepcopy(model))
    assert sum(isinstance(module, Experts) for module in split.modules()) == 2
    linears = [name for name, module in split.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sum(".experts." in name for name in linears) == 2 * 4 * 2  # layers, experts, up and down
    torch.testing.assert_close(split(input_ids=ids()).logits, expected, atol=1e-5, rtol=1e-5)
    assert names - set(split.state_dict()) == {name for name in names if ".experts." in name}
    again = set(split.state_dict())
    assert set(experts_to_linear(split).state_dict()) == again


def test_one_expert_by_hand() -> None:
    """Two experts, one number: silu(1·2)·(3·2)·5 for the first expert, weighted by 0.25; the other is not asked."""
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

    config = MixtralConfig(num_local_experts=2, hidden_size=1, intermediate_size=1, hidden_act="silu")
    config._experts_implementation = "eager"
    holder = torch.nn.Sequential(MixtralExperts(config))
    with torch.no_grad():
        holder[0].gate_up_proj.copy_(torch.tensor([[[1.0], [3.0]], [[float("nan")], [0.0]]]))
        holder[0].down_proj.copy_(torch.tensor([[[5.0]], [[0.0]]]))
    experts_to_linear(holder)
    found = holder[0](torch.tensor([[2.0]]), torch.tensor([[0]]), torch.tensor([[0.25]]))
    silu = 2 / (1 + torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(found, torch.tensor([[float(silu) * 6 * 5 * 0.25]]))


@torch.inference_mode()
def test_all_tokens_through_all_experts_is_the_same_sum() -> None:
    experts = next(module for module in experts_to_linear(fused("mixtral")).modules() if isinstance(module, Experts))
    generator = torch.Generator().manual_seed(0)
    states, weights = torch.randn(9, 32, generator=generator), torch.rand(9, 2, generator=generator)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    torch.testing.assert_close(experts._dense(states, index, weights), experts(states, index, weights))


def test_on_the_meta_device_the_names_and_shapes_are_those_of_a_real_model() -> None:
    import transformers

    model = fused("gpt_oss")
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        experts_to_linear(skeleton)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in experts_to_linear(model).state_dict().items()}
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == shapes


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@torch.inference_mode()
def test_experts_quantize_and_travel_in_a_torch_archive(tmp_path: Path, family: str) -> None:
    model = experts_to_linear(fused(family))
    spec = {"model": "model.safetensors", "config": "config.json"}
    sizes = []
    for name in ("plain", "small"):
        (tmp_path / name).mkdir()
        export_packed(model, plan_of(model), tmp_path / name)
        sizes.append((tmp_path / name / "model.safetensors").stat().st_size)
        weight_only(model, WeightOnly(), calibrated_on([]))
    plan = plan_of(model)
    assert plan is not None
    assert sum(".experts." in name for name in plan.linears) == 2 * 4 * 2
    assert sizes[1] < 0.5 * sizes[0]
    expected = DecoderWithHead(model)(ids())
    assert torch.equal(load_decoder(tmp_path / "plain", spec)(ids()), expected)
    small = load_decoder(tmp_path / "small", spec)(ids())
    assert torch.nn.functional.cosine_similarity(small, expected, dim=-1).mean() > 0.97
