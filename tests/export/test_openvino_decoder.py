"""Decoders as OpenVINO IR: what GenAI answers from it is what torch answers, and integers lie there as integers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greedy import continue_greedily
from places import ROOT
from stage_context import calibrated_on
from task_models import load_model
from tiny_models import DECODERS

from archiver.architecture import keep_layers, layer_parts
from archiver.compression.prune.structured import cut_out
from archiver.compression.prune.structured_options import ShareLayers
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only
from archiver.compression.share.layers import share_layers
from archiver.errors import UnsupportedModelError
from archiver.export.graph.integer_constants import as_rows, decompression, on_grid
from archiver.export.graph.weights import pack_openvino
from archiver.export.openvino_decoder import IR, export_decoder
from archiver.state.constraints import state_of
from archiver.state.plan import plan_of
from archiver.storage.codec_choice import WeightLayout
from archiver.storage.int8_rows import quantize_rows
from archiver.storage.layouts import layouts_by_content
from handlers.architecture.factored import factored_like, put
from handlers.storage.graph_weights import PACKED, read_graph_weights

pytest.importorskip("optimum.exporters.openvino", reason="optimum-intel is not installed")
genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
ov = pytest.importorskip("openvino", reason="openvino is not installed")

TASK = "text-generation"
PROMPTS = ([5, 9, 20, 31, 7], [100, 200, 50], [300, 300, 300, 11, 12, 13, 14])
F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": 1}
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def by_genai(folder: Path, prompts: Sequence[list[int]] = PROMPTS, tokens: int = 10) -> list[list[int]]:
    """Greedy continuations of all prompts in one batch with paged attention."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipe = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {**F32, "KV_CACHE_PRECISION": "f32"})
    handles = []
    for index, ids in enumerate(prompts):
        how = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True)
        how.set_eos_token_id(0)
        how.stop_token_ids = {0}
        handles.append(pipe.add_request(index, ov.Tensor(np.array([ids], np.int64)), how))
    while pipe.has_non_finished_requests():
        pipe.step()
    return [handle.read_all()[0].generated_ids for handle in handles]


def by_torch(model: torch.nn.Module, tokens: int = 10) -> list[list[int]]:
    return [continue_greedily(model, ids, tokens, ()) for ids in PROMPTS]


JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def weights_seen(folder: Path) -> dict[tuple[str, tuple[int, ...]], set[str]]:
    """{(layer type, shape of a constant): its types} of what the compiled graph multiplies by and looks up in."""
    compiled = ov.Core().compile_model(str(folder / IR), "CPU", F32)
    found: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for operation in compiled.get_runtime_model().get_ordered_ops():
        kind = _note(operation, "layerType")
        for source in operation.input_values() if kind in ("FullyConnected", "Gather", "MatMul") else ():
            if _note(source.get_node(), "layerType") == "Const" and len(source.shape) == 2:
                found.setdefault((kind, tuple(source.shape)), set()).add(_note(source.get_node(), "outputPrecisions"))
    return found


def product_of(model: torch.nn.Module, name: str) -> tuple[int, int]:
    """The shape of the weight that a linear module's integers are part of: those of one input are joined."""
    parent, _, own = name.rpartition(".")
    names = next((group for group in JOINED if own in group), (own,))
    weights = [model.get_parameter(f"{parent}.{one}.weight".lstrip(".")) for one in names]
    return sum(len(weight) for weight in weights), weights[0].shape[1]


def _note(operation: Any, key: str) -> str:
    value = operation.get_rt_info()[key]
    return str(getattr(value, "value", value))


def uneven(model: torch.nn.Module) -> None:
    first, second = layer_parts(model)
    cut_out(model, first.of_kind("heads")[0], torch.tensor([1]))
    cut_out(model, first.of_kind("neurons")[0], torch.arange(45))
    cut_out(model, second.of_kind("neurons")[0], torch.arange(10, 40))


def factored(model: torch.nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, module in list(model.named_modules()):
            if name.endswith(("q_proj", "down_proj", "c_attn")) and isinstance(module, torch.nn.Linear):
                put(model, name, factored_like(module, 7))


def shared(model: torch.nn.Module) -> None:
    share_layers(model, ShareLayers(groups=1), calibrated_on([]))


def shorter(model: torch.nn.Module) -> None:
    keep_layers(model, (1,))


CASES: list[tuple[str, Callable[[torch.nn.Module], None] | None]] = [
    *((family, None) for family in DECODERS),
    *(("llama", change) for change in (uneven, factored, shared, shorter)),
    *(("gpt2", change) for change in (uneven, factored)),
]


@pytest.mark.parametrize(("family", "change"), CASES)
def test_genai_continues_as_torch_does(tiny_model, tmp_path, family, change):
    model = load_model(tiny_model(family, TASK), TASK)
    if change is not None:
        change(model)
    export_decoder(model, None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {IR, "openvino_model.bin", "config.json"}
    expected = by_torch(model)
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    assert by_genai(tmp_path) == expected
    text = (tmp_path / IR).read_text()
    assert text.count('type="ScaledDotProductAttention"') == model.config.num_hidden_layers
    if change in (shared, factored, shorter):  # what several layers share lies there once
        plain = sum(parameter.nbytes for parameter in model.parameters())
        assert (tmp_path / "openvino_model.bin").stat().st_size < plain + 4096


def test_a_sliding_window_is_kept(tiny_model, tmp_path):
    model = load_model(tiny_model("mistral", TASK, sliding_window=4), TASK)
    export_decoder(model, None, tmp_path)
    expected = by_torch(model)
    assert expected != by_torch(load_model(tiny_model("mistral", TASK), TASK))
    assert by_genai(tmp_path) == expected


def quantized(model: torch.nn.Module, **options: Any) -> None:
    weight_only(model, WeightOnly(**options), calibrated_on([]))


GRIDS = [
    ("llama", {"bits": 4}, "i4", 8),
    ("llama", {"bits": 4, "group_size": 32, "symmetric": False}, "u4", 8),
    ("gpt2", {"bits": 3, "group_size": 32}, "i4", 8),
    ("gpt2", {"bits": 2, "group_size": 16}, "i4", 8),
    ("llama", {"bits": 8, "symmetric": True, "group_size": 16}, "i8", 4),
    ("llama", {"bits": 8, "symmetric": False}, "u8", 4),
]


@pytest.mark.parametrize(("family", "options", "kind", "times"), GRIDS)
def test_a_grid_is_exact_and_computed_as_integers(tiny_model, tmp_path, family, options, kind, times):
    wide = {"tie_word_embeddings": True, **WIDE} if family == "llama" else {"n_embd": 64, "n_inner": 128}
    model = load_model(tiny_model(family, TASK, **wide), TASK)
    quantized(model, targets=("*",), **options)
    export_decoder(model, plan_of(model), tmp_path)
    assert by_genai(tmp_path) == by_torch(model)
    seen = weights_seen(tmp_path)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert seen["FullyConnected", product_of(model, name)] == {kind}, name
    assert seen["Gather", tuple(model.get_input_embeddings().weight.shape)] == {kind}
    scales = sum(grid[0].scale.numel() for grid in state_of(model).constraints.values()) * 4  # with zero points
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert (tmp_path / "openvino_model.bin").stat().st_size < weights * 4 / times + scales + 8192


@pytest.mark.parametrize(("family", "change"), [("llama", None), ("llama", shared), ("qwen2", uneven), ("gpt2", None)])
def test_the_plans_weights_are_int8_rows(tiny_model, tmp_path, family, change):
    model = load_model(tiny_model(family, TASK), TASK)
    if change is not None:
        change(model)
    quantized(model)
    plan = plan_of(model)
    assert plan is not None
    export_decoder(model, plan, tmp_path)
    with torch.no_grad():
        rows = {
            name: quantize_rows(model.get_parameter(f"{name}.weight")) for name in (*plan.linears, *plan.embeddings)
        }
        for name, (q, scale) in rows.items():
            model.get_parameter(f"{name}.weight").copy_(q.float() * scale)
    assert by_genai(tmp_path) == by_torch(model)
    seen = weights_seen(tmp_path)
    for name in plan.linears:
        shape = tuple(model.get_parameter(f"{name}.weight").shape)
        if shape[1] % 2:
            assert seen["FullyConnected", shape] == {"f32"}, name
        else:
            assert seen["FullyConnected", product_of(model, name)] == {"i8"}, name


def answers(node: Any, weight: np.ndarray) -> np.ndarray:
    """`node` as the CPU plugin computes it: rows looked up, and products with the unit vectors."""
    ids = ov.opset13.parameter([-1], ov.Type.i32)
    x = ov.opset13.parameter([-1, weight.shape[1]], ov.Type.f32)
    looked = ov.opset13.gather(node, ids, ov.opset13.constant(0, ov.Type.i32))
    model = ov.Model([looked, ov.opset13.matmul(x, node, False, True)], [ids, x])
    rows, products = (
        ov.Core()
        .compile_model(model, "CPU", F32)(
            [np.arange(len(weight), dtype=np.int32), np.eye(weight.shape[1], dtype=np.float32)]
        )
        .values()
    )
    assert np.array_equal(rows, products.T)
    return rows


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_weights_come_back_bit_for_bit(bits, groups):
    draw = np.random.default_rng(bits)
    q, zero = draw.integers(0, 2**bits, (48, groups, 64 // groups)), draw.integers(0, 2**bits, (48, groups))
    # From the smallest half-precision number to the largest.
    scale = np.float16(2.0 ** draw.uniform(-24, 15.9, (48, groups))).astype(np.float32)
    weight = ((q - zero[..., None]).astype(np.float32) * scale[..., None]).reshape(48, 64)
    found = on_grid(weight, WeightLayout(grouping=(scale, zero, bits)))
    assert found is not None and found.bits == (8 if bits > 4 else 4)
    assert np.array_equal(answers(decompression(found), weight), weight)
    assert on_grid(weight * np.float32(1.001), WeightLayout(grouping=(scale, zero, bits))) is None
    noise = draw.normal(size=(48, 64)).astype(np.float32)
    rows = as_rows(noise)  # whose scales are no half-precision numbers
    assert np.array_equal(answers(decompression(rows), noise), rows.values())
    assert np.abs(rows.values() - noise).max() <= rows.scale.max() / 2 * 1.0001


def test_packed_at_rest_the_integers_survive(tiny_model, tmp_path):
    model = load_model(tiny_model("llama", TASK, **WIDE), TASK)
    quantized(model, bits=4, group_size=32, symmetric=False)
    with torch.no_grad():  # signs, as a binary stage leaves them: no grid of integers, but small at rest
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.copy_(table.weight.sign() * table.weight.abs().mean())
    export_decoder(model, plan_of(model), tmp_path)
    binary, xml = (tmp_path / "openvino_model.bin").read_bytes(), (tmp_path / IR).read_text()
    assert pack_openvino(tmp_path / IR, layouts_by_content(model))
    assert read_graph_weights(tmp_path / PACKED).tobytes() == binary
    assert (tmp_path / PACKED).stat().st_size < 0.5 * len(binary)
    assert (tmp_path / IR).read_text() == xml and not (tmp_path / "openvino_model.bin").exists()


def condition(model: torch.nn.Module) -> list[Any]:
    state_of(model)  # which is made when it is first asked for
    return [
        {name: (value.dtype, value.clone().tolist()) for name, value in model.state_dict().items()},
        [(sorted(vars(module)), module.training, id(module.forward.__func__)) for module in model.modules()],
        dict(vars(model.config)),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_module_stays_as_it_is_and_nothing_is_said(tiny_model, tmp_path, monkeypatch, capfd, fails):
    model = load_model(tiny_model("gpt2", TASK), TASK)
    model.transformer.h[1].train()
    before = condition(model)
    capfd.readouterr()
    if fails:
        monkeypatch.setattr("optimum.exporters.openvino.convert.patch_stateful", lambda *_, **__: 1 / 0)
        with pytest.raises(
            UnsupportedModelError, match="GPT2LMHeadModel: optimum-intel cannot export it to OpenVINO: division"
        ):
            export_decoder(model, None, tmp_path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export_decoder(model, None, tmp_path)
    assert condition(model) == before
    assert model.config._attn_implementation == "eager"
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


ALONE = """
import sys
from pathlib import Path
from archiver.export.openvino_decoder import export_decoder
from task_models import load_model
export_decoder(load_model(Path(sys.argv[1]), "text-generation"), None, Path(sys.argv[2]))
"""


def test_the_same_module_gives_the_same_bytes(tiny_model, tmp_path):
    path = tiny_model("llama", TASK)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for _ in range(2):  # the counters of a process that has exported before stand elsewhere
        export_decoder(load_model(path, TASK), None, tmp_path / "a")
    command = [sys.executable, "-c", ALONE, path, tmp_path / "b"]
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])}
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env=os.environ | places)
    for item in (tmp_path / "a").iterdir():
        assert item.read_bytes() == (tmp_path / "b" / item.name).read_bytes(), item.name
    text = (tmp_path / "a" / IR).read_text()
    assert "rt_info" not in text and str(tmp_path) not in text and str(ROOT) not in text


def test_without_optimum(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimum.exporters.openvino", None)
    with pytest.raises(UnsupportedModelError, match="pip install 'optimum-intel"):
        export_decoder(load_model(tiny_model("llama", TASK), TASK), None, tmp_path)
