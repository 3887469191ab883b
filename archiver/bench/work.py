"""What one pass of a graph computes and reads, counted on OpenVINO's form of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from archiver.errors import ArchiverError
from handlers.storage.graph_weights import weights_of

# What may stand between a constant, or a rounded activation, and the product that takes it.
_BETWEEN = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}
_INTEGERS = {"i8", "u8", "i4", "u4"}


class Uncounted(ArchiverError):
    """A graph whose work is not known."""

    exit_code = 2


@dataclass(frozen=True)
class Work:
    """Multiplications and additions on rounded numbers and on others, and bytes of the weights that they read."""

    integer: int
    floating: int
    weight_bytes: int


def read_graph(folder: Path, spec: Mapping[str, Any]) -> Any:
    """An extracted archive's graph as OpenVINO reads it.

    Args:
        spec: serving.json's `session`.
    Raises: Uncounted where there is none that OpenVINO can read.
    """
    import openvino

    path = folder / spec.get("model", "openvino_model.xml")
    try:
        weights = weights_of(folder, spec) if path.suffix == ".xml" and spec.get("weights") else None
        core = openvino.Core()
        return (
            core.read_model(path) if weights is None else core.read_model(path.read_bytes(), openvino.Tensor(weights))
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise Uncounted(f"{path.name} cannot be counted: OpenVINO does not read it ({reason})") from error


def work_of(graph: Any, shapes: Mapping[str, Sequence[int]] | None = None, *, rounds_itself: bool = False) -> Work:
    """The work of one pass.

    Args:
        graph: an openvino.Model; it is reshaped. shapes: of its inputs by name, None: only weights are counted.
        rounds_itself: whether the runtime rounds the activations of every product whose weights are integers.
    """
    if shapes is not None:
        graph.reshape(
            {name: list(shapes[name]) for port in graph.inputs for name in port.get_names() if name in shapes}
        )
    integer = floating = 0
    weights: dict[str, int] = {}
    for product in graph.get_ordered_ops():
        inner = _inner(product)
        if inner is None:
            continue
        constants = _constants(product.input_value(1))
        weights |= {one.get_friendly_name(): one.get_byte_size() for one in constants}
        if shapes is None:
            continue
        count = 2 * prod(product.get_output_shape(0)) * inner
        whole = any(one.get_element_type().get_type_name() in _INTEGERS for one in constants)
        rounded = whole and (rounds_itself or _is_rounded(product.input_value(0)))
        integer, floating = integer + count * rounded, floating + count * (not rounded)
    return Work(integer, floating, sum(weights.values()))


def _inner(product: Any) -> int | None:
    """How many products are summed for each number of the output; None for an operation of another kind."""
    kind = product.get_type_name()
    if kind == "MatMul":
        shape = product.get_input_partial_shape(0)
        place = -2 if product.get_attributes()["transpose_a"] and len(shape) > 1 else -1
        return int(shape[place].get_length()) if shape[place].is_static else 0
    if kind in ("Convolution", "GroupConvolution"):
        return int(prod(product.get_input_shape(1)[1 if kind == "Convolution" else 2 :]))
    if kind == "ScaledDotProductAttention":  # two products: its output has the values' width
        queries, keys = product.get_input_partial_shape(0), product.get_input_partial_shape(1)
        fixed = queries[-1].is_static and keys[-2].is_static
        return 2 * int(keys[-2].get_length()) if fixed else 0
    return None


def _constants(port: Any) -> list[Any]:
    """The constants that make what comes from here, as long as nothing else does."""
    node = port.get_node()
    if node.get_type_name() == "Constant":
        return [node]
    if node.get_type_name() not in _BETWEEN | {"FakeQuantize"}:
        return []
    return [one for place in range(node.get_input_size()) for one in _constants(node.input_value(place))]


def _is_rounded(port: Any) -> bool:
    node = port.get_node()
    while node.get_type_name() in _BETWEEN:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")
