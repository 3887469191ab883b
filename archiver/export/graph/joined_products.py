"""Products of one input made one: an attention's queries, keys and values, a gate and what it lets through.

On one stream a language model's time goes into starting its products as much as into computing them: SmolLM2-135M in 4 bits
wrote 1.18 × as many tokens a second after its 210 products had become 120 (OpenVINO 2026.4, two cores with AVX512-VNNI); at
eight streams 1.04 ×. Every number stays the same: rows of a weight are computed apart.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Weight:
    """A product's weight [rows, columns] as integers with a scale, and maybe a zero, for each group or row.

    parts: the constants, integers, scale[, zero], each with rows first. converts: which of them a Convert follows.
    reshaped: whether groups become rows at the end.
    """

    parts: tuple[Any, ...]
    converts: tuple[bool, ...]
    reshaped: bool

    @property
    def form(self) -> tuple[Any, ...]:
        """What must be the same of weights that are joined: all but the number of rows."""
        shapes = tuple((tuple(part.shape)[1:], str(part.get_element_type())) for part in self.parts)
        return shapes, self.converts, self.reshaped

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.parts[0].shape[0])


@dataclass(frozen=True)
class Product:
    """One MatMul(input, weight, transposed), and its only user where that adds a bias."""

    node: Any
    weight: Weight
    bias: Any = None
    added: Any = None


def join_products(graph: Any, moved: dict[int, tuple[Any, Any]] | None = None) -> int:
    """Join what can be joined in an openvino.Model, in place.

    Products are joined that have the same input and integer weights of the same form: all with a bias, or all without. A
    weight that other products use, too (layers that share), is joined where they use the same weights together. Floats are
    left as they are: joined, they would be copied.

    Args:
        moved: is filled with what has taken a product's place, by its instance id: the joined MatMul, and the output with
            the rows that were its own, bias included.
    Returns: how many products there are fewer.
    """
    groups: dict[tuple[Any, ...], list[Product]] = {}
    for node in graph.get_ordered_ops():
        found = _product(node)
        if found is not None:
            source = node.input_value(0)
            key = (source.get_node().get_instance_id(), source.get_index(), found.weight.form, found.bias is None)
            groups.setdefault(key, []).append(found)
    # In one order wherever the same weights meet, for layers that share them.
    several = [sorted(group, key=_weight_id) for group in groups.values() if len(group) > 1]
    together = Counter(_weights(group) for group in several)
    made: dict[tuple[int, ...], Any] = {}
    saved = 0
    for group in several:
        names = _weights(group)
        users = [len(product.node.input_value(1).get_target_inputs()) for product in group]
        if len(set(names)) < len(names) or any(count != together[names] for count in users):
            continue
        if names not in made:
            made[names] = _joined([product.weight for product in group])
        _replace(group, made[names], {} if moved is None else moved)
        saved += len(group) - 1
    return saved


def _weight_id(product: Product) -> int:
    return int(product.node.input_value(1).get_node().get_instance_id())


def _weights(group: list[Product]) -> tuple[int, ...]:
    return tuple(map(_weight_id, group))


def _product(node: Any) -> Product | None:
    if node.get_type_name() != "MatMul":
        return None
    settings = node.get_attributes()
    weight = _weight(node.input_value(1).get_node())
    if weight is None or settings["transpose_a"] or not settings["transpose_b"]:
        return None
    users = list(node.output(0).get_target_inputs())
    if len(users) == 1 and users[0].get_node().get_type_name() == "Add":
        added = users[0].get_node()
        bias = added.input_value(1 - users[0].get_index()).get_node()
        if _is_constant(bias) and int(np.prod(list(bias.shape))) == weight.rows == int(list(bias.shape)[-1]):
            return Product(node, weight, bias, added)
    return Product(node, weight)


def _weight(node: Any) -> Weight | None:
    """What an integer weight is made of; None for anything else."""
    reshaped = node.get_type_name() == "Reshape"
    if reshaped:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return None
    integers, scale = (node.input_value(place).get_node() for place in (0, 1))
    parts = [_constant_of(scale)]
    if integers.get_type_name() == "Subtract":
        parts.append(_constant_of(integers.input_value(1).get_node()))
        integers = integers.input_value(0).get_node()
    parts.insert(0, _constant_of(integers))
    if any(part is None for part in parts):
        return None
    found = [part for part in parts if part is not None]
    return Weight(tuple(part for part, _ in found), tuple(converted for _, converted in found), reshaped)


def _constant_of(node: Any) -> tuple[Any, bool] | None:
    """(a constant, whether it is converted)."""
    converted = node.get_type_name() == "Convert"
    inner = node.input_value(0).get_node() if converted else node
    if not _is_constant(inner) or len(inner.shape) < 2:
        return None
    # Where a constant does not fill its last byte, the rows of another could not follow.
    whole = int(np.prod(list(inner.shape))) * inner.get_element_type().bitwidth % 8 == 0
    return (inner, converted) if whole else None


def _is_constant(node: Any) -> bool:
    return bool(node.get_type_name() == "Constant")


def _joined(weights: list[Weight]) -> Any:
    """The node that gives all their rows, in order."""
    import openvino as ov
    from openvino import opset13

    first = weights[0]
    parts = [_rows_of([weight.parts[place] for weight in weights]) for place in range(len(first.parts))]
    nodes = [
        opset13.convert(part, ov.Type.f32) if converted else part
        for part, converted in zip(parts, first.converts, strict=True)
    ]
    integers = opset13.subtract(nodes[0], nodes[2]) if len(nodes) == 3 else nodes[0]
    found = opset13.multiply(integers, nodes[1])
    if not first.reshaped:
        return found
    rows, columns = sum(weight.rows for weight in weights), int(np.prod(list(first.parts[0].shape)[1:]))
    shape = opset13.constant(np.array([rows, columns], np.int64))
    return opset13.reshape(found, shape, special_zero=False)


def _rows_of(constants: list[Any]) -> Any:
    """Constants of one type, one below the other."""
    import openvino as ov
    from openvino import opset13

    shape = [sum(int(one.shape[0]) for one in constants), *list(constants[0].shape)[1:]]
    tensor = ov.Tensor(constants[0].get_element_type(), ov.Shape(shape))
    raw = [np.ascontiguousarray(one.data).reshape(-1).view(np.uint8) for one in constants]
    tensor.data.reshape(-1).view(np.uint8)[:] = np.concatenate(raw)
    return opset13.constant(tensor)


def _replace(group: list[Product], weight: Any, moved: dict[int, tuple[Any, Any]]) -> None:
    from openvino import opset13

    found = joined = opset13.matmul(group[0].node.input_value(0), weight, False, True)
    if group[0].bias is not None:
        bias = np.concatenate([np.asarray(product.bias.data).reshape(-1) for product in group])
        found = opset13.add(found, opset13.constant(bias))
    sizes = np.array([product.weight.rows for product in group], np.int64)
    parts = opset13.variadic_split(found, opset13.constant(np.array(-1, np.int64)), opset13.constant(sizes))
    for place, product in enumerate(group):
        moved[product.node.get_instance_id()] = (joined, parts.output(place))
        for user in (product.added or product.node).output(0).get_target_inputs():
            user.replace_source_output(parts.output(place))
