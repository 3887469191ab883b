"""int8 inside an ONNX graph, for ONNX Runtime's CPU kernels.

A linear layer y = x·W + b with W [K, N] becomes an integer product. Weights: symmetric per output channel, W ≈ Wq·s_w.

dynamic-int8, a scale per token (row of x), so that no neighbour in the batch changes an answer. ONNX Runtime's own
DynamicQuantizeLinear takes one scale per tensor, hence per batch.
    x ≥ −c known (after GELU c = 0.17, after ReLU c = 0):  u = round((x + c)/s_x), s_x = max(x + c)/255
        y = s_x·s_w·(u·Wq) − c·Σ_k(Wq·s_w) + b            the second term is a constant and joins the bias
    otherwise:                                             u = round(x/s_x) + 128, s_x = max|x|/127
        y = s_x·s_w·((u − 128)·Wq) + b
static-int8, one range per layer, measured beforehand:      u = round(x/s) + z
        y = s·s_w·((u − z)·Wq) + b
weight-only: W is stored as Wq and s_w and becomes fp32 when the session opens (constant folding).

Activations are unsigned (0 … 255) because x86's dot-product instructions multiply unsigned by signed bytes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from archiver.compression.quantize.int8 import affine_uint8
from archiver.export.onnx import OnnxGraph
from archiver.export.onnx_convolutions import quantize_convolutions
from archiver.state.plan import QuantizationPlan
from archiver.storage.int8_rows import quantize_rows

MICROSOFT = "com.microsoft"
# The least value an activation function gives, negated: min GELU(x) = −0.16997, min ReLU(x) = 0.
SHIFT_AFTER = {"Gelu": 0.17, "Relu": 0.0}
_TINY = 1e-12


def quantize_graph(exported: OnnxGraph, plan: QuantizationPlan) -> onnx.ModelProto:
    """A copy of the graph with the linears and embeddings of `plan` in int8, as `plan.kind` says."""
    model = quantize_convolutions(exported, plan)
    linears, embeddings = set(plan.linears), set(plan.embeddings)
    modules = _split_gemms(model, exported.modules, linears)
    writer = _Writer(model)
    for node in list(model.graph.node):
        module = modules.get(node.name)
        if node.op_type == "Gather" and module in embeddings and node.input[0] in writer.weights:
            _embedding(writer, node)
        elif node.op_type == "MatMul" and module in linears and node.input[1] in writer.weights:
            if plan.kind == "weight-only":
                _weight_only(writer, node)
            elif plan.kind == "dynamic-int8":
                _dynamic(writer, node)
            else:
                _static(writer, node, plan.ranges[module])
        else:
            writer.keep(node)
    writer.finish()
    return model


def _split_gemms(model: onnx.ModelProto, modules: dict[str, str], linears: set[str]) -> dict[str, str]:
    """Write the linears that the exporter made Gemm(x, Wᵀ, b) (those of 2-D inputs) as MatMul and Add, like the others.

    Returns the modules by node name, the new ones included.
    """
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    modules, nodes = dict(modules), []
    for node in graph.node:
        if node.op_type != "Gemm" or modules.get(node.name) not in linears or node.input[1] not in weights:
            nodes.append(node)
            continue
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        weight = numpy_helper.to_array(weights[node.input[1]])
        name = f"{node.name}_weight"
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(weight.T if transposed else weight), name)
        )
        matmul = f"{node.name}_matmul"
        modules[matmul] = modules[node.name]
        # The exporter leaves out a bias that is zero.
        biased = len(node.input) > 2 and node.input[2]
        product = f"{matmul}_out" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=matmul))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_add"))
    del graph.node[:]
    graph.node.extend(nodes)
    return modules


class _Writer:
    """Collects the new node list in order, adds constants, and drops the weights that no node reads any more."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights = {item.name: item for item in model.graph.initializer}
        self.producer = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.quantized: dict[object, tuple[str, str, str]] = {}
        self.uses: dict[str, int] = {}  # how many products have had their copy of a weight
        self.absorbed: set[str] = set()  # names of nodes whose work another one now does
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def keep(self, node: onnx.NodeProto) -> None:
        if node.name not in self.absorbed:
            self._nodes.append(node)

    def add(self, op: str, inputs: Iterable[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[name])

    def int8_weight(self, name: str) -> tuple[str, str, np.ndarray, np.ndarray]:
        """Names of Wq [K, N] int8 and s_w [N] float32 for the weight `name` [K, N], and both as arrays.

        A copy for every product that reads it: ONNX Runtime, asked for unsigned weights (see its session), rewrites
        each product's weight under the weight's own name, and fails at the second. At rest equal copies lie once.
        """
        self.uses[name] = self.uses.get(name, 0) + 1
        copy = name if self.uses[name] == 1 else f"{name}_{self.uses[name]}"
        q, scale = quantize_rows(torch.from_numpy(self.array(name).T.copy()))
        wq, sw = np.ascontiguousarray(q.numpy().T), scale.numpy()[:, 0]
        return self.constant(f"{copy}_q", wq), self.constant(f"{copy}_s", sw), wq, sw

    def bias_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """The Add behind a MatMul and the name of its constant [N], if that is all that reads the product."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) != 1 or readers[0].op_type != "Add":
            return None
        bias = next((name for name in readers[0].input if name in self.weights), None)
        width = self.array(node.input[1]).shape[1:]
        return (readers[0], bias) if bias is not None and self.array(bias).shape == width else None

    def finish(self) -> None:
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input} | {item.name for item in graph.output}
        kept = [item for item in graph.initializer if item.name in read] + [
            item for item in self._constants.values() if item.name in read
        ]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        if any(node.domain == MICROSOFT for node in self._nodes):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def _embedding(writer: _Writer, node: onnx.NodeProto) -> None:
    """Rows are looked up in int8 with their scales: a quarter of the memory, and no table to unpack."""
    table, indices = node.input
    q, scale = quantize_rows(torch.from_numpy(writer.array(table).copy()))
    rows = writer.add("Gather", [writer.constant(f"{table}_q", q.numpy()), indices], f"{node.name}_rows")
    scales = writer.add("Gather", [writer.constant(f"{table}_s", scale.numpy()), indices], f"{node.name}_scales")
    wide = writer.add("Cast", [rows], f"{node.name}_float", to=TensorProto.FLOAT)
    writer.add("Mul", [wide, scales], node.output[0])


def _weight_only(writer: _Writer, node: onnx.NodeProto) -> None:
    wq, sw, _, _ = writer.int8_weight(node.input[1])
    wide = writer.add("Cast", [wq], f"{wq}_float", to=TensorProto.FLOAT)
    weight = writer.add("Mul", [wide, sw], f"{wq}_weight")
    writer.add("MatMul", [node.input[0], weight], node.output[0])


def _static(writer: _Writer, node: onnx.NodeProto, span: tuple[float, float]) -> None:
    scale, zero = affine_uint8(*span)
    wq, sw, _, _ = writer.int8_weight(node.input[1])
    key = (node.input[0], scale, zero)
    if key not in writer.quantized:
        s = writer.constant(f"{node.name}_scale", np.float32(scale))
        z = writer.constant(f"{node.name}_zero", np.uint8(zero))
        writer.quantized[key] = (writer.add("QuantizeLinear", [node.input[0], s, z], f"{node.name}_u"), s, z)
    u, s, z = writer.quantized[key]
    inputs, output = [u, wq, s, sw, z], node.output[0]
    bias = writer.bias_of(node)
    if bias is not None:
        # The product adds its bias as it writes; a separate Add would read and write everything once more.
        adder, name = bias
        inputs, output = [*inputs, "", name], adder.output[0]
        writer.absorbed.add(adder.name)
    writer.add("MatMulIntegerToFloat", inputs, output, domain=MICROSOFT)


def _dynamic(writer: _Writer, node: onnx.NodeProto) -> None:
    x = node.input[0]
    wq_name, sw_name, wq, sw = writer.int8_weight(node.input[1])
    maker = writer.producer.get(x)
    bias = writer.bias_of(node)
    shift = SHIFT_AFTER.get(maker.op_type) if maker is not None and bias is not None else None
    key = (x, shift)
    if key not in writer.quantized:
        writer.quantized[key] = _quantize_per_token(writer, node.name, x, wq.shape[0], shift)
    u, scale, zero = writer.quantized[key]
    one = writer.constant("one", np.float32(1))
    product = writer.add(
        "MatMulIntegerToFloat", [u, wq_name, one, sw_name, zero], f"{node.name}_product", domain=MICROSOFT
    )
    writer.add("Mul", [product, scale], node.output[0])
    if shift:
        assert bias is not None
        adder, name = bias
        moved = writer.array(name) - np.float32(shift) * (wq.astype(np.float32) * sw).sum(axis=0)
        fresh = writer.constant(f"{node.name}_bias", moved.astype(np.float32))
        for position, found in enumerate(adder.input):
            if found == name:
                adder.input[position] = fresh


def _quantize_per_token(writer: _Writer, prefix: str, x: str, width: int, shift: float | None) -> tuple[str, str, str]:
    """Nodes that turn x [rows, tokens, width] into unsigned bytes with a scale per token.

    Returns the names of the bytes (same shape), the scales [rows, tokens, 1] and the zero point.
    QuantizeLinear along axis 0 of the flattened [rows·tokens, width] takes a scale per row in one vectorised pass.
    """
    name = f"{prefix}_{{}}".format
    last = writer.constant("axis_last", np.array([-1], np.int64))
    if shift is None:
        magnitude = writer.add("Abs", [x], name("abs"))
        zero, levels = writer.constant("zero_128", np.uint8(128)), 127
    else:
        magnitude = x
        if shift:
            magnitude = x = writer.add(
                "Add", [x, writer.constant(f"shift_{shift}", np.float32(shift))], name("shifted")
            )
        zero, levels = writer.constant("zero_0", np.uint8(0)), 255
    peak = writer.add("ReduceMax", [magnitude, last], name("peak"), keepdims=1)
    step = writer.add("Mul", [peak, writer.constant(f"one_{levels}th", np.float32(1 / levels))], name("step"))
    scale = writer.add("Max", [step, writer.constant("tiny", np.float32(_TINY))], name("scale"))
    scales = writer.add("Reshape", [scale, last], name("scales"))
    count = writer.add("Shape", [scales], name("count"))
    zeros = writer.add("Expand", [zero, count], name("zeros"))
    flat = writer.add("Reshape", [x, writer.constant(f"flat_{width}", np.array([-1, width], np.int64))], name("flat"))
    bytes_flat = writer.add("QuantizeLinear", [flat, scales, zeros], name("bytes_flat"), axis=0)
    shape = writer.add("Shape", [x], name("shape"))
    return writer.add("Reshape", [bytes_flat, shape], name("bytes")), scale, zero
