"""How cut and shared shapes travel: structure.json, the torch runtime's folder, and the graphs of the other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cut_models import SIZES, run, tiny
from sessions import open_session
from stage_context import calibrated_on

from archiver.architecture import keep_layers, layer_list, layer_parts
from archiver.architecture.tracing import text_tracing
from archiver.compression.prune.structured import cut_layer
from archiver.compression.prune.structured_options import ShareLayers
from archiver.compression.quantize.int8 import static_int8
from archiver.compression.quantize.options import StaticInt8
from archiver.compression.share.layers import share_layers
from archiver.export.graph.weights import pack_onnx, pack_openvino
from archiver.export.onnx import OnnxGraph, export_onnx, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.export.torch_packed import export_packed
from archiver.state.plan import plan_of
from handlers.architecture.conv1d import conv1d_to_linear
from handlers.architecture.loading import load_module
from handlers.architecture.outputs.encoder import EncoderWithHead
from handlers.architecture.structure import STRUCTURE, describe, rebuild
from handlers.errors import UnsoundArchive
from handlers.storage.graph_weights import PACKED

SPEC = {
    "model": "model.safetensors",
    "config": "config.json",
    "module": "handlers.architecture.outputs.encoder:EncoderWithHead",
    "settings": {"pooling": None},
}
HEADS = ([0, 2], [1], [0, 1, 3])
NEURONS = (45, 48, 7)


def uneven(model: torch.nn.Module) -> None:
    """Every layer another size, and none a multiple of anything."""
    for index in range(3):
        heads, neurons = layer_parts(model)[index].cuts
        cut_layer(model, heads, torch.tensor(HEADS[index]))
        cut_layer(model, neurons, torch.arange(NEURONS[index]))


def shared(model: torch.nn.Module) -> None:
    share_layers(model, ShareLayers(groups=1), calibrated_on([]))


CHANGES = {"uneven": uneven, "shared": shared}


def arrays(encoder: EncoderWithHead, rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(5, 40, (rows, length))
    found = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return found | ({"token_type_ids": np.zeros_like(ids)} if encoder.takes_type_ids else {})


def by_torch(encoder: EncoderWithHead, batch: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return encoder(**{name: torch.from_numpy(value) for name, value in batch.items()}).numpy()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_torch_folder_gives_the_same_model_again(tmp_path, kind, change):
    model = tiny(kind)
    CHANGES[change](model)
    keep_layers(model, (0, 2))
    export_packed(model, None, tmp_path)
    loaded = load_module(tmp_path, SPEC | {"class": type(model).__name__})
    assert torch.equal(run(loaded.model), run(model))
    assert describe(loaded.model) == describe(model)
    structure = json.loads((tmp_path / STRUCTURE).read_text())
    assert bool(structure["shared"]) == (change == "shared")
    first = layer_parts(model)[0].of_kind("neurons")[0]
    assert structure["linears"][first.consumer] == [32, 45 if change == "uneven" else 48]


def test_a_layer_keeps_the_scale_of_its_place_in_the_original():
    """GPT-2's option to divide attention by the layer's number: the config alone would count the layers anew."""
    config = transformers.AutoConfig.for_model(
        "gpt2", vocab_size=40, n_positions=16, scale_attn_by_inverse_layer_idx=True, **SIZES["gpt2"]
    )
    torch.manual_seed(0)
    model = conv1d_to_linear(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")).eval()
    keep_layers(model, (0, 2))
    config = type(model.config).from_dict(model.config.to_dict())
    fresh = conv1d_to_linear(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")).eval()
    rebuild(fresh, json.loads(json.dumps(describe(model))))
    fresh.load_state_dict(model.state_dict())
    scales = [layer.attn.scaling for layer in layer_list(model)[1]]
    assert scales == pytest.approx([8**-0.5, 8**-0.5 / 3])
    assert [layer.attn.scaling for layer in layer_list(fresh)[1]] == scales
    assert torch.equal(run(fresh), run(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"linears": {"bert.nowhere": [4, 4]}}, "does not fit the model"),
        ({"linears": {"bert.embeddings.word_embeddings": [4, 4]}}, "is no linear layer"),
        ({"settings": {"bert.encoder.layer.0.attention.self": {"heads": 3}}}, "does not fit the model"),
        ({"settings": {"bert.encoder.layer.0.attention.self": {"all_head_size": [3]}}}, "a number, text, true, false"),
        ({"settings": {"bert.encoder.layer.0.attention.self": {"_forward_hooks": 1}}}, "is no plain number or text"),
    ],
)
def test_a_structure_that_does_not_fit(change, message):
    model = tiny("bert")
    with pytest.raises(UnsoundArchive, match=message):
        rebuild(model, describe(model) | change)


def sessions(folder: Path, encoder: EncoderWithHead, graph: OnnxGraph, chosen: Any = None) -> list[Any]:
    """Both graph runtimes over packed weights, as an archive holds them."""
    found = []
    for runtime, model in (("onnxruntime", "model.onnx"), ("openvino", "model.xml")):
        place = folder / runtime
        place.mkdir(parents=True)
        (place / "requirements.txt").write_text("safetensors\n")
        spec: dict[str, Any] = {
            "runtime": runtime,
            "requirement": runtime,
            "model": model,
            "device": "cpu",
            "int8": False,
        }
        if runtime == "onnxruntime":
            save_onnx(quantize_graph(graph, chosen) if chosen else graph.model, place / model)
            packed = pack_onnx(place / model, {})
        else:
            widths = [encoder.model.get_submodule(name).in_features for name in chosen.linears] if chosen else []
            spec["config"] = export_openvino(graph, chosen, place, widths=widths)
            packed = pack_openvino(place / model, {})
        found.append(open_session(place, spec | ({"weights": PACKED} if packed else {}), threads=1))
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_the_other_runtimes_answer_as_torch_does(tmp_path, change):
    model = tiny("bert")
    CHANGES[change](model)
    encoder = EncoderWithHead(model)
    graph = export_onnx(encoder, text_tracing(encoder, max_length=16))
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    products = [node.name for node in graph.model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert linears <= {graph.modules[name] for name in products if name in graph.modules}
    options, batches = StaticInt8(samples=4), [arrays(encoder, 1, 12, seed) for seed in range(4)]
    static_int8(
        model, options, calibrated_on([{k: torch.from_numpy(v) for k, v in b.items()} for b in batches], encoder)
    )
    plan = plan_of(model)
    batch = arrays(encoder, 3, 9)
    expected = by_torch(encoder, batch)
    for session in sessions(tmp_path / "plain", encoder, graph):
        np.testing.assert_allclose(session.run(batch), expected, atol=1e-5, err_msg=session.name)
        if change == "shared":  # the graph has a transposed copy for each layer; at rest they are one tensor
            once = 4 * sum(parameter.numel() for parameter in model.parameters())
            folder = tmp_path / "plain" / session.name
            stored = next(path for path in (folder / PACKED, folder / "model.bin") if path.is_file())
            assert stored.stat().st_size < 1.1 * once
    for session in sessions(tmp_path / "int8", encoder, graph, plan):
        difference = np.abs(session.run(batch) - expected).max()
        assert difference < 0.25 * np.abs(expected).max(), session.name  # random weights: 0.15 with everything right
