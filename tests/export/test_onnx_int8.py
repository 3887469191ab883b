"""int8 inside an ONNX graph: numbers by hand for every kind, and what the graph looks like afterwards."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from archiver.export.onnx import OnnxGraph, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.state.plan import QuantizationPlan
from archiver.storage.int8_rows import quantize_rows


def graph(nodes: list[tuple], weights: dict[str, list], *, width: int, rank: int = 3, kind: int = TensorProto.FLOAT):
    """An OnnxGraph x → y of `nodes` (op, inputs, output, attributes); node and module are named as the output."""
    shape = ["rows", "tokens", width][3 - rank :] if kind == TensorProto.FLOAT else ["rows", "tokens"]
    made = [helper.make_node(op, inputs, [output], name=output, **more) for op, inputs, output, more in nodes]
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()]
    body = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        constants,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return OnnxGraph(model, {node.name: node.name for node in made})


def linear(weight: list, bias: list | None = None, before: str | None = None) -> OnnxGraph:
    """y = x·weight (+ bias), behind an activation function where `before` names one; the linear's module is `fc`."""
    x = "h" if before else "x"
    nodes: list[tuple] = [(before, ["x"], "h", {})] if before else []
    nodes.append(("MatMul", [x, "W"], "fc" if bias else "y", {}))
    if bias:
        nodes.append(("Add", ["fc", "b"], "y", {}))
    made = graph(nodes, {"W": weight, **({"b": bias} if bias else {})}, width=len(weight))
    made.modules["fc" if bias else "y"] = "fc"
    return made


def plan(kind: str, **more) -> QuantizationPlan:
    return QuantizationPlan(kind, linears=("fc",), embeddings=("table",), **more)


def run(model: onnx.ModelProto, x) -> np.ndarray:
    found = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    array = np.array(x)
    return found.run(None, {"x": array if array.dtype == np.int64 else array.astype(np.float32)})[0]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Columns whose integers are ±127 exactly, with the scales 1/127 and 0.5/127.
W = [[1.0, 0.5], [-1.0, -0.5]]


def test_dynamic_scales_each_token_by_itself():
    model = quantize_graph(linear(W), plan("dynamic-int8"))
    # Token 1: scale 1.27/127, integers 127 and 33 (0.333 → 0.33). Token 2: scale 12.7/127, integers −127 and 0.
    found = run(model, [[[1.27, 0.333], [-12.7, 0.04]]])
    assert found[0].tolist() == [pytest.approx([0.94, 0.47], abs=1e-5), pytest.approx([-12.7, -6.35], abs=1e-5)]
    assert "MatMul" not in ops(model)
    assert run(model, np.zeros((2, 3, 2))).tolist() == np.zeros((2, 3, 2)).tolist()  # no division by zero


def test_dynamic_behind_gelu_uses_all_255_steps():
    model = quantize_graph(linear([[1.0], [1.0]], [0.5], "Gelu"), plan("dynamic-int8"))
    # GELU gives 0 and 10; with 0.17 more: scale 10.17/255, integers round(4.26) = 4 and 255.
    zero = 4 * 10.17 / 255 - 0.17
    assert run(model, [[[0.0, 10.0]]])[0, 0].tolist() == pytest.approx([zero + 10.0 + 0.5], abs=1e-5)


def test_dynamic_behind_relu_needs_no_shift():
    model = quantize_graph(linear([[1.0], [1.0], [1.0]], [0.5], "Relu"), plan("dynamic-int8"))
    # 0, 2.55 and 1.004 with the scale 0.01: integers 0, 255 and 100.
    assert run(model, [[[-3.0, 2.55, 1.004]]])[0, 0].tolist() == pytest.approx([4.05], abs=1e-5)
    assert "b" in {item.name for item in model.graph.initializer}  # the bias stays as it is


def test_dynamic_behind_gelu_without_a_bias_to_correct():
    model = quantize_graph(linear([[1.0], [1.0]], None, "Gelu"), plan("dynamic-int8"))
    # Symmetric instead: scale 10/127.
    assert run(model, [[[0.0, 10.0]]])[0, 0].tolist() == pytest.approx([10.0], abs=1e-5)


def test_static_clips_to_its_range():
    calibrated = plan("static-int8", ranges={"fc": (-1.0, 1.55)})
    model = quantize_graph(linear([[1.0], [1.0]], [0.25]), calibrated)
    # Scale 0.01, zero point 100: 0.503 → 150 → 0.5; −2 is clipped to −1; 9 to 1.55.
    assert run(model, [[[0.503, -2.0], [9.0, 0.0]]])[0].tolist() == [
        pytest.approx([-0.25], abs=1e-5),
        pytest.approx([1.8], abs=1e-5),
    ]
    assert ops(model) == ["QuantizeLinear", "MatMulIntegerToFloat"]  # the bias is added inside


def test_weight_only_is_the_dequantized_weight():
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    model = quantize_graph(linear(weight.tolist(), [0.5] * 5), plan("weight-only"))
    q, scale = quantize_rows(weight.T)
    back = (q * scale).T.numpy()
    np.testing.assert_allclose(run(model, x), x @ back + 0.5, atol=1e-5)
    assert {item.data_type for item in model.graph.initializer if item.name == "W_q"} == {TensorProto.INT8}


@pytest.mark.parametrize("kind", ["dynamic-int8", "static-int8", "weight-only"])
def test_embedding_rows_have_their_own_scales(kind):
    made = graph(
        [("Gather", ["T", "x"], "y", {})],
        {"T": [[1.27, 0.333], [0.0, 0.0], [12.7, -0.04]]},
        width=0,
        kind=TensorProto.INT64,
    )
    made.modules["y"] = "table"
    model = quantize_graph(made, plan(kind))
    found = run(model, np.array([[0, 2, 1]]))
    np.testing.assert_allclose(found, [[[1.27, 0.33], [12.7, 0.0], [0.0, 0.0]]], atol=1e-5)
    assert {item.name for item in model.graph.initializer} == {"T_q", "T_s"}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["dynamic-int8", "static-int8", "weight-only"])
def test_gemm_of_two_dimensional_inputs(kind, biased):
    """A classifier on the first token alone: the exporter makes it Gemm(x, Wᵀ, b)."""
    inputs = ["x", "W", "b"] if biased else ["x", "W"]
    made = graph(
        [("Gemm", inputs, "y", {"transB": 1})], {"W": np.transpose(W).tolist(), "b": [1.0, 2.0]}, width=2, rank=2
    )
    made.modules["y"] = "fc"
    model = quantize_graph(made, plan(kind, ranges={"fc": (-1.27, 1.28)}))
    assert "Gemm" not in ops(model)
    rounded = 0.333 if kind == "weight-only" else 0.33
    expected = np.array([1.27 - rounded, (1.27 - rounded) / 2]) + ([1, 2] if biased else [0, 0])
    np.testing.assert_allclose(run(model, [[1.27, 0.333]]), [expected], atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic-int8", "static-int8"])
def test_linears_that_share_an_input_share_its_quantization(kind):
    """Query, key and value read the same tokens: these are quantized once."""
    nodes = [(("MatMul"), ["x", f"W{i}"], f"p{i}", {}) for i in range(3)] + [("Sum", ["p0", "p1", "p2"], "y", {})]
    made = graph(nodes, {f"W{i}": W for i in range(3)}, width=2)
    made.modules.update({f"p{i}": f"fc{i}" for i in range(3)})
    names = ("fc0", "fc1", "fc2")
    three = QuantizationPlan(kind, names, (), ranges=dict.fromkeys(names, (-1.27, 1.28)))
    model = quantize_graph(made, three)
    assert ops(model).count("QuantizeLinear") == 1
    assert ops(model).count("MatMulIntegerToFloat") == 3
    np.testing.assert_allclose(run(model, [[[1.27, 0.333]]]), [[[3 * 0.94, 3 * 0.47]]], atol=1e-5)


def test_only_the_plans_modules_change():
    made = graph([("MatMul", ["x", "W"], "p", {}), ("MatMul", ["p", "V"], "y", {})], {"W": W, "V": W}, width=2)
    made.modules.update({"p": "fc", "y": "other"})
    model = quantize_graph(made, plan("dynamic-int8"))
    assert ops(model).count("MatMul") == 1
    names = {item.name for item in model.graph.initializer}
    assert "V" in names
    assert "W" not in names  # nobody reads the fp32 weight any more
    assert {item.name for item in made.model.graph.initializer} == {"W", "V"}  # the graph that was given is untouched


def test_a_neighbour_changes_nothing():
    """One scale per batch, as ONNX Runtime's own quantizer has it, lets an outlier blur everybody else's answer."""
    from onnxruntime.quantization import quantize_dynamic

    random = np.random.default_rng(0)
    made = linear(random.normal(size=(16, 4)).tolist(), [0.1] * 4)
    mine, loud = random.normal(size=(1, 3, 16)), random.normal(size=(1, 3, 16)) * 50
    changes = {}
    for name, model in (("ours", quantize_graph(made, plan("dynamic-int8"))), ("theirs", None)):
        if model is None:
            model = _quantized_by(quantize_dynamic, made.model)
        alone, together = run(model, mine), run(model, np.concatenate([mine, loud]))[:1]
        changes[name] = float(np.abs(alone - together).max())
    assert changes["ours"] <= 1e-5
    assert changes["theirs"] > 0.1


def _quantized_by(quantize_dynamic, model: onnx.ModelProto) -> onnx.ModelProto:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        onnx.save(model, str(plain))
        quantize_dynamic(plain, small)
        return onnx.load(str(small))


def test_saved_bytes_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        save_onnx(quantize_graph(linear(W, [1.0, 2.0], "Gelu"), plan("dynamic-int8")), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
