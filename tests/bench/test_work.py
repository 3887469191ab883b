"""What a graph computes and reads, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset15 as ops
import pytest

from archiver.bench.work import Uncounted, Work, read_graph, work_of


def inputs(*shape: int) -> Any:
    node = ops.parameter(list(shape), np.float32, name="x")
    node.output(0).set_names({"x"})
    return node


def weights(*shape: int) -> Any:
    """Whole numbers with a scale for each row, as a compressed graph has them."""
    whole = ops.convert(ops.constant(np.ones(shape, np.int8)), np.float32)
    return ops.multiply(whole, ops.constant(np.ones((shape[0], 1), np.float32)))


def rounded(node: Any) -> Any:
    low, high = ops.constant(np.float32(-1)), ops.constant(np.float32(1))
    return ops.fake_quantize(node, low, high, low, high, 256)


def test_products_by_their_kind() -> None:
    """[2, 7, 4] through [6, 4], [5, 6] and a product of two activations."""
    x = inputs(-1, -1, 4)
    one = ops.matmul(rounded(x), weights(6, 4), False, True)  # 2·2·7·4·6
    two = ops.matmul(one, weights(5, 6), False, True)  # 2·2·7·6·5
    three = ops.matmul(two, two, False, True)  # 2·2·7·5·7
    graph = openvino.Model([three], [x])
    bytes_of = 6 * 4 + 6 * 4 + 5 * 6 + 5 * 4
    assert work_of(graph, {"x": (2, 7, 4)}) == Work(672, 840 + 980, bytes_of)
    assert work_of(graph, {"x": (2, 7, 4)}, rounds_itself=True) == Work(672 + 840, 980, bytes_of)


def test_attention_and_convolution() -> None:
    x = inputs(1, 3, 10, 8)
    causal = False
    attended = ops.scaled_dot_product_attention(x, x, x, causal=causal)  # [1, 3, 10, 8]: 2 · 2·3·10·10·8
    kernel = ops.constant(np.ones((4, 3, 2, 2), np.float32))
    convolved = ops.convolution(attended, kernel, [1, 1], [0, 0], [0, 0], [1, 1])  # [1, 4, 9, 7]: 2·4·9·7·3·2·2
    graph = openvino.Model([convolved], [x])
    assert work_of(graph, {}) == Work(0, 9600 + 6048, 4 * 3 * 2 * 2 * 4)


def test_without_shapes_weights_alone_are_counted_and_shared_ones_once() -> None:
    x, shared = inputs(-1, 4), weights(4, 4)
    graph = openvino.Model([ops.matmul(ops.matmul(x, shared, False, True), shared, False, True)], [x])
    assert work_of(graph) == Work(0, 0, 16 + 16)


def test_a_graph_that_openvino_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(Uncounted, match=r"model\.onnx cannot be counted: OpenVINO does not read it \("):
        read_graph(tmp_path, {"model": "model.onnx"})
