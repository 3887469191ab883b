"""Exported graphs: every family and task on both runtimes against torch, in every shape; int8 in size and likeness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sessions import open_session
from stage_context import calibrated_on
from task_models import load_model

from archiver.architecture.tracing import text_tracing
from archiver.compression.quantize.int8 import dynamic_int8, static_int8, weight_only
from archiver.compression.quantize.options import DynamicInt8, StaticInt8, WeightOnly
from archiver.export.onnx import OnnxGraph, export_onnx, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.export.torch_packed import export_packed
from archiver.models.source import resolve_model
from archiver.state.plan import plan_of
from handlers.architecture.loading import load_module
from handlers.architecture.outputs.encoder import EncoderWithHead

KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"]
TASKS = {"text-classification": None, "feature-extraction": "mean"}
MAX_LENGTH = 64
SHAPES = [(1, 1), (3, 17), (2, MAX_LENGTH)]
FLOOR = 0.97  # mean cosine; 0.99 and more on real models, whose layers are wider than 32 numbers
STAGES = {
    "dynamic-int8": (dynamic_int8, DynamicInt8()),
    "static-int8": (static_int8, StaticInt8(samples=8)),
    "weight-only": (weight_only, WeightOnly()),
}


def arrays(rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids with padding behind all rows but the first."""
    random = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, random.integers(1, length + 1) :] = 0
    ids = np.where(mask == 1, random.integers(5, 100, (rows, length)), 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def by_torch(encoder: torch.nn.Module, batch: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return encoder(**{name: torch.from_numpy(value) for name, value in batch.items()}).numpy()


@pytest.fixture(scope="module")
def exported(tiny_model) -> Callable[..., tuple[EncoderWithHead, OnnxGraph]]:
    """Factory (kind, task) → the module and its graph; exported once."""
    done: dict[tuple[str, str], tuple[EncoderWithHead, OnnxGraph]] = {}

    def export(kind: str, task: str) -> tuple[EncoderWithHead, OnnxGraph]:
        if (kind, task) not in done:
            # One layer: an export takes seconds, and a second layer is the first one again.
            layers = {"n_layers" if kind == "distilbert" else "num_hidden_layers": 1}
            model = load_model(resolve_model(tiny_model(kind, task, **layers)), task)
            encoder = EncoderWithHead(model, TASKS[task])
            done[kind, task] = encoder, export_onnx(encoder, text_tracing(encoder, max_length=MAX_LENGTH))
        return done[kind, task]

    return export


def opened(folder: Path, runtime: str, model: str, **more):
    spec = {"runtime": runtime, "requirement": runtime, "model": model, "device": "cpu", "int8": False, **more}
    return open_session(folder, spec, threads=1)


# The classifiers of xlm-roberta and camembert are roberta's, line by line.
CLASSIFIERS = [kind for kind in KINDS if kind not in ("xlm-roberta", "camembert")]


@pytest.mark.parametrize(
    ("kind", "task"),
    [(kind, "feature-extraction") for kind in KINDS] + [(kind, "text-classification") for kind in CLASSIFIERS],
)
def test_both_runtimes_equal_torch_in_every_shape(exported, tmp_path, kind, task):
    encoder, graph = exported(kind, task)
    save_onnx(graph.model, tmp_path / "model.onnx")
    sessions = [opened(tmp_path, "onnxruntime", "model.onnx")]
    config = export_openvino(graph, None, tmp_path, widths=[])
    sessions.append(opened(tmp_path, "openvino", "model.xml", config=config))
    for rows, length in SHAPES:
        batch = arrays(rows, length)
        expected = by_torch(encoder, batch)
        for session in sessions:
            found = session.run(batch)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=f"{session.name} [{rows}, {length}]")


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine of a row to its counterpart."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def plan(encoder: EncoderWithHead, stage: str):
    function, options = STAGES[stage]
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if encoder.takes_type_ids else [])
    batches = [{name: torch.from_numpy(arrays(1, 12, seed)[name]) for name in names} for seed in range(8)]
    function(encoder.model, options, calibrated_on(batches, encoder))
    return plan_of(encoder.model)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_int8_for_onnx_runtime(exported, tmp_path, kind, stage):
    encoder, graph = exported(kind, "feature-extraction")
    chosen = plan(encoder, stage)
    quantized = quantize_graph(graph, chosen)
    save_onnx(quantized, tmp_path / "model.onnx")
    save_onnx(graph.model, tmp_path / "plain.onnx")
    for rows, length in SHAPES:
        batch = arrays(rows, length)
        found = opened(tmp_path, "onnxruntime", "model.onnx").run(batch)
        assert likeness(found, by_torch(encoder, batch)) > FLOOR
    # All matrices of the plan are integers now; what else there is in fp32 has one dimension.
    wide = [item.name for item in quantized.graph.initializer if len(item.dims) == 2 and item.data_type == 1]
    assert not [name for name in wide if not name.endswith("_s")]
    if stage != "weight-only":
        made = sum(node.op_type == "MatMulIntegerToFloat" for node in quantized.graph.node)
        assert made == len(chosen.linears)
    weights = sum(np.prod(item.dims) * (4 if item.data_type == 1 else 1) for item in quantized.graph.initializer)
    plain = sum(np.prod(item.dims) * 4 for item in graph.model.graph.initializer)
    assert weights < 0.5 * plain  # rows of 32 with a scale of 4 bytes each, norms and biases: no quarter here


@pytest.mark.parametrize("stage", STAGES)
def test_int8_for_openvino(exported, tmp_path, stage):
    encoder, graph = exported("bert", "feature-extraction")
    for name, chosen in (("plain", None), (stage, plan(encoder, stage))):
        (tmp_path / name).mkdir()
        config = export_openvino(graph, chosen, tmp_path / name, widths=[32, 64] if chosen else [])
    session = opened(tmp_path / stage, "openvino", "model.xml", config=config)
    for rows, length in SHAPES:
        batch = arrays(rows, length)
        assert likeness(session.run(batch), by_torch(encoder, batch)) > FLOOR
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in (stage, "plain")]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_same_bytes_when_exported_twice(exported, tmp_path, stage):
    """In one process, where counters of both exporters run on, and with no trace of the host."""
    encoder, graph = exported("bert", "text-classification")
    again = export_onnx(encoder, text_tracing(encoder, max_length=MAX_LENGTH)) if stage == "dynamic-int8" else graph
    chosen = plan(encoder, stage) if stage else None
    folders = []
    for name, made in (("one", graph), ("two", again)):
        folder = tmp_path / name
        folder.mkdir()
        folders.append(folder)
        save_onnx(quantize_graph(made, chosen) if chosen else made.model, folder / "model.onnx")
        export_openvino(made, chosen, folder, widths=[32, 64] if chosen else [])
    assert sorted(path.name for path in folders[0].iterdir()) == ["model.bin", "model.onnx", "model.xml"]
    for path in folders[0].iterdir():
        content = path.read_bytes()
        assert content == (folders[1] / path.name).read_bytes(), path.name
        for trace in (str(tmp_path), str(Path.home()), str(Path(torch.__file__).parent), ".py"):
            assert trace.encode() not in content, f"{path.name} names {trace}"


def test_no_metadata_in_the_graph(exported):
    _, graph = exported("bert", "text-classification")
    model = graph.model
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert set(graph.modules.values()) >= {"bert.encoder.layer.0.output.dense", "classifier"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_for_torch(tiny_model, tmp_path, kind, task):
    model = load_model(resolve_model(tiny_model(kind, task)), task)
    encoder = EncoderWithHead(model, TASKS[task])
    spec = {
        "model": "model.safetensors",
        "config": "config.json",
        "class": type(model).__name__,
        "module": "handlers.architecture.outputs.encoder:EncoderWithHead",
        "settings": {"pooling": TASKS[task]},
    }
    batch = arrays(3, 17)
    for name, chosen in (("plain", None), ("small", plan(encoder, "weight-only"))):
        (tmp_path / name).mkdir()
        export_packed(model, chosen, tmp_path / name)
    plain, small = (by_torch(load_module(tmp_path / name, spec), batch) for name in ("plain", "small"))
    np.testing.assert_allclose(plain, by_torch(encoder, batch), atol=1e-6)
    assert likeness(small, plain) > FLOOR
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "plain")]
    assert sizes[0] < 0.5 * sizes[1]
    export_packed(model, plan_of(model), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "small/model.safetensors").read_bytes()


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 3.0]), ("cls", [1.0, 5.0]), ("max", [3.0, 5.0])])
def test_pooling_by_hand(pooling, expected):
    """Three tokens, of which the last is padding and counts for nothing."""

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(last_hidden_state=torch.tensor([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]]]))

    encoder = EncoderWithHead(Fixed(), pooling)
    found = encoder(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 0]]), None)
    assert found.tolist() == [expected]
    with pytest.raises(ValueError, match="pooling is 'sum'; allowed: mean, cls, max"):
        EncoderWithHead(Fixed(), "sum")
