"""Products of one input as one: the same numbers, fewer products, and nothing joined that must stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from archiver.export.graph.integer_constants import Integers, decompression  # noqa: E402
from archiver.export.graph.joined_products import join_products  # noqa: E402

COLUMNS = 8


def integers(rows: int, *, seed: int, bits: int = 8, groups: int = 1, zero: bool = False) -> Integers:
    draw = np.random.default_rng(seed)
    low, high = (0, 2**bits) if zero else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    zeros = draw.integers(1, 3, (rows, groups, 1)).astype(np.int16) if zero else np.zeros((rows, groups, 1), np.int16)
    levels = draw.integers(low, high, (rows, groups, COLUMNS // groups)).astype(np.int16) - zeros
    if zero:
        levels[0, 0, 0] = high - 1 - zeros[0, 0, 0]  # does not fit a signed type
    return Integers(levels, draw.uniform(0.1, 1, (rows, groups, 1)).astype(np.float32), zeros, bits)


def product(source: Any, weight: Any, bias: bool = False) -> Any:
    found = ops.matmul(source, weight, False, True)
    if not bias:
        return found
    rows = int(found.get_output_partial_shape(0)[-1].get_length())
    return ops.add(found, ops.constant(np.arange(rows, dtype=np.float32)[None, None]))


def graph_of(*branches: Any) -> Any:
    """x [1, 3, COLUMNS] → what each branch makes of it."""
    x = ops.parameter([1, 3, COLUMNS], np.float32)
    return ov.Model([ops.result(branch(x)) for branch in branches], [x], "products")


def check(graph: Any, fewer: int, joined: set[tuple[int, ...]] = frozenset()) -> None:  # type: ignore[assignment]
    """Join, and compare all results with those of before; joined: shapes of the integers that there are then, too."""
    x = np.random.default_rng(9).standard_normal((1, 3, COLUMNS)).astype(np.float32)

    def results() -> list[np.ndarray]:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        found = ov.Core().compile_model(graph, "CPU", settings)([x])
        return [found[port].copy() for port in found]

    def products() -> int:
        return sum(node.get_type_name() == "MatMul" for node in graph.get_ordered_ops())

    before, count = results(), products()
    assert join_products(graph) == fewer
    assert products() == count - fewer
    shapes = {tuple(node.shape) for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"}
    assert shapes >= joined
    for one, other in zip(before, results(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert join_products(graph) == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_integers_of_one_form(bits: int, groups: int, zero: bool, bias: bool) -> None:
    weights = [integers(rows, seed=rows, bits=bits, groups=groups, zero=zero) for rows in (6, 2, 4)]
    graph = graph_of(*(lambda x, one=one: product(x, decompression(one), bias) for one in weights))
    check(graph, 2, {(12, groups, COLUMNS // groups) if groups > 1 else (12, COLUMNS)})


def test_what_differs_stays_apart() -> None:
    of = {
        "eight bits": lambda x: product(x, decompression(integers(4, seed=0))),
        "four bits": lambda x: product(x, decompression(integers(4, seed=1, bits=4))),
        "groups": lambda x: product(x, decompression(integers(4, seed=2, groups=2))),
        "a bias": lambda x: product(x, decompression(integers(4, seed=3)), bias=True),
        "another input": lambda x: product(ops.relu(x), decompression(integers(4, seed=4))),
        "floats": lambda x: product(x, ops.constant(np.ones((4, COLUMNS), np.float32))),
        "floats, too": lambda x: product(x, ops.constant(np.full((4, COLUMNS), 2, np.float32))),
    }
    check(graph_of(*of.values()), 0)


def test_bits_that_do_not_fill_a_byte_stay_apart() -> None:
    weights = [integers(3, seed=seed, bits=4, zero=True) for seed in (0, 1)]  # three zero points of four bits
    check(graph_of(*(lambda x, one=one: product(x, decompression(one)) for one in weights)), 0)


def test_layers_that_share_their_weights_share_the_joined_ones() -> None:
    first, second = (decompression(integers(COLUMNS, seed=seed)) for seed in (0, 1))

    def layer(x: Any) -> Any:
        return ops.add(product(x, first), product(x, second))

    graph = graph_of(lambda x: layer(layer(x)))
    check(graph, 2, {(2 * COLUMNS, COLUMNS)})
    tables = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant" and len(node.shape) == 2]
    assert sorted(tuple(node.shape) for node in tables) == [(2 * COLUMNS, 1), (2 * COLUMNS, COLUMNS)]


def test_a_weight_that_is_used_alone_elsewhere_stays_one() -> None:
    first, second = (decompression(integers(COLUMNS, seed=seed)) for seed in (0, 1))
    check(graph_of(lambda x: product(product(x, first), first), lambda x: product(x, second)), 0)
