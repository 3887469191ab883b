"""Convolutions in int8: ONNX Runtime and OpenVINO give nearly what fp32 gives, from integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from image_models import pixels, tiny_image_model

from archiver.architecture.tracing import Tracing
from archiver.compression.quantize.int8 import _plan as planned
from archiver.compression.quantize.int8 import activation_ranges
from archiver.compression.quantize.options import StaticInt8
from archiver.export.onnx import export_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.state.plan import plan_of
from handlers.architecture.outputs.image import ImageModel


def exported(family: str, **options):
    """(module, its graph, the plan of a static-int8 stage)."""
    model = tiny_image_model(family)
    module = ImageModel(model).eval()
    graph = export_onnx(module, Tracing({"pixel_values": pixels(2)}, {"pixel_values": {0: "rows"}}, {"rows": (1, 64)}))
    planned(model, StaticInt8(**options), "static-int8")
    plan = plan_of(model)
    plan.calibration = [{"pixel_values": image[None]} for image in pixels(16)]
    plan.ranges = activation_ranges(model, plan.linears, plan.calibration)
    return module, graph, plan


def likeness(found, expected):
    a, b = (each - each.mean(1, keepdims=True) for each in (found, expected))
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def by_onnxruntime(model):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"pixel_values": pixels(5).numpy()})[0]


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_both_runtimes_are_near(family, tmp_path):
    import openvino

    module, graph, plan = exported(family)
    with torch.no_grad():
        expected = module(pixels(5)).numpy()
    quantized = quantize_graph(graph, plan)
    assert len(plan.convolutions) == Counter(node.op_type for node in graph.model.graph.node)["Conv"]
    assert likeness(by_onnxruntime(quantized), expected) > 0.95
    integers = [item for item in quantized.graph.initializer if item.data_type == 3 and len(item.dims) == 4]
    assert len(integers) == len(plan.convolutions)
    export_openvino(graph, plan, tmp_path, widths=[64])
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert likeness(compiled(pixels(5).numpy())[0], expected) > 0.95


def test_what_targets_leaves_out_stays_in_fp32():
    _, graph, plan = exported("resnet", targets=("*encoder*",), ignore=("*shortcut*",))
    quantized = quantize_graph(graph, plan)
    consumers = {name: node.op_type for node in quantized.graph.node for name in node.input}
    plain = [item.name for item in quantized.graph.initializer if item.data_type == 1 and len(item.dims) == 4]
    assert plain == ["model.resnet.embedder.embedder.convolution.weight",
                     "model.resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"]  # fmt: skip
    assert all(consumers[name] == "Conv" for name in plain)


def test_a_vision_transformers_patches_are_left_alone_by_onnxruntime():
    _, graph, plan = exported("vit")
    assert plan.convolutions == ("vit.embeddings.patch_embeddings.projection",)
    quantized = quantize_graph(graph, plan)
    assert "DequantizeLinear" not in {node.op_type for node in quantized.graph.node}


def test_weight_only_plans_no_convolutions():
    model = tiny_image_model("convnext")
    planned(model, StaticInt8(), "weight-only")
    plan = plan_of(model)
    assert plan.convolutions == () and len(plan.linears) == 7
