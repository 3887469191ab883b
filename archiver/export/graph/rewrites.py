"""What OpenVINO's CPU plugin does not see for itself in a graph of one pass: the same values, in less memory and time.

Every rewrite leaves each output the same to the last bit (tests/export/test_rewrites.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def rewrite(model: Any) -> None:
    """Rewrite an openvino.Model in place, wherever a pattern is found."""
    _look_up_stored_rows(model)
    _view_masks(model)
    model.validate_nodes_and_infer_types()
    _state_heads(model)
    model.validate_nodes_and_infer_types()


def _look_up_stored_rows(model: Any) -> None:
    """Tables of int8 rows with a scale each: look up first, convert what was found.

    The plugin computes what hangs on constants alone when it compiles: the whole table in fp32, four times as large.
    """
    from openvino import opset13 as op

    for gather in model.get_ordered_ops():
        if gather.get_type_name() != "Gather" or gather.input_value(0).get_node().get_type_name() != "Multiply":
            continue
        product, ids, axis = (gather.input_value(place) for place in range(3))
        stored, scale = (product.get_node().input_value(place) for place in range(2))
        table = _converted(stored)
        if table is None or not _is_constant(scale) or not _is_number(axis, 0) or _batches(gather):
            continue
        if len(table.get_shape()) != 2 or list(scale.get_shape()) not in ([table.get_shape()[0], 1], [1, 1], []):
            continue
        found = op.convert(op.gather(table, ids, axis), product.get_element_type())
        by_row = list(scale.get_shape()) == [table.get_shape()[0], 1]
        scaled = op.multiply(found, op.gather(scale, ids, axis) if by_row else _number_of(scale))
        _replace(gather, scaled)


def _view_masks(model: Any) -> None:
    """transformers' mask of padding, a GatherND by the numbers of all rows and columns: as the view that it is.

    mask[rows, columns] with rows [batch, 1, 1, 1] and columns [1, 1, 1, keys] that count from 0 is mask[:, None, None, :].
    """
    from openvino import opset13 as op

    for node in model.get_ordered_ops():
        if node.get_type_name() == "GatherND" and _counts_rows_and_columns(node):
            _replace(node, op.unsqueeze(node.input_value(0), op.constant(np.array([1, 2], np.int64))))


def _state_heads(model: Any) -> None:
    """[batch, tokens, heads · width] → [batch, tokens, heads, width]: the number of heads is known, and said so.

    Left to be inferred (−1), the plugin takes it for one that changes from run to run.
    """
    from openvino import opset13 as op

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Reshape" or not _keeps_first_two(node):
            continue
        before, after = node.input_value(0).get_partial_shape(), node.get_output_partial_shape(0)
        if before.rank.is_dynamic or after.rank.is_dynamic or (len(before), len(after)) != (3, 4):
            continue
        if before[2].is_static and after[2].is_dynamic and after[3].is_static:
            shape = [0, 0, before[2].get_length() // after[3].get_length(), after[3].get_length()]
            _replace(node, op.reshape(node.input_value(0), op.constant(np.array(shape, np.int64)), True))


# ---- what a graph says --------------------------------------------------------------------------------------------------


def _replace(old: Any, new: Any) -> None:
    new.set_friendly_name(old.get_friendly_name())
    old.output(0).replace(new.output(0))


def _is_constant(output: Any) -> bool:
    return bool(output.get_node().get_type_name() == "Constant")


def _values(output: Any) -> list[float] | None:
    """The values of a small constant."""
    if not _is_constant(output) or int(np.prod(output.get_shape(), dtype=np.int64)) > 16:
        return None
    return [float(value) for value in np.asarray(output.get_node().data).reshape(-1)]


def _is_number(output: Any, value: int) -> bool:
    return _values(output) == [value]


def _batches(gather: Any) -> bool:
    return bool(gather.get_attributes().get("batch_dims", 0))


def _converted(output: Any) -> Any:
    """The constant of integers that a node converts, or None."""
    node = output.get_node()
    if node.get_type_name() != "Convert" or not _is_constant(node.input_value(0)):
        return None
    table = node.input_value(0)
    return table if table.get_element_type().get_type_name() in ("i8", "u8") else None


def _number_of(scale: Any) -> Any:
    """The one scale of all rows."""
    from openvino import opset13 as op

    return op.constant(np.asarray(scale.get_node().data).reshape(()))


def _counting(output: Any) -> tuple[Any, int] | None:
    """(the Range 0, 1, 2, … behind views of it, the axis from the end along which it counts), or None for anything else."""
    node = output.get_node()
    while node.get_type_name() in ("Unsqueeze", "Broadcast", "Reshape", "Convert"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Range":
        return None
    if not (_is_number(node.input_value(0), 0) and _is_number(node.input_value(2), 1)):
        return None
    shape = output.get_partial_shape()
    long = [place for place, size in enumerate(shape) if not (size.is_static and size.get_length() == 1)]
    return (node, long[0] - len(shape)) if len(long) == 1 else None


def _counts_rows_and_columns(node: Any) -> bool:
    """Whether a GatherND takes each element [b, t] of a matrix once, at [b, 0, 0, t]."""
    data, places = node.input_value(0), node.input_value(1).get_node()
    if len(data.get_partial_shape()) != 2 or node.get_attributes().get("batch_dims", 0):
        return False
    if places.get_type_name() != "Concat" or places.get_input_size() != 2:
        return False
    if len(places.get_output_partial_shape(0)) != 5:
        return False
    axes = []
    for place in range(2):
        last = places.input_value(place).get_node()  # adds an axis for the two numbers of a place
        spread = last.input_value(0).get_node()
        if last.get_type_name() not in ("Unsqueeze", "Reshape") or spread.get_type_name() != "Broadcast":
            return False
        counted = _counting(spread.input_value(0))
        axes.append(None if counted is None or not _is_length_of(counted[0], data, place) else counted[1])
    return axes == [-4, -1]


def _is_length_of(counted: Any, data: Any, axis: int) -> bool:
    """Whether a Range ends at the length of an axis of this input, or of another one of [rows, tokens]."""
    node = counted.input_value(1).get_node()
    while node.get_type_name() in ("Squeeze", "Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Gather" or not _is_number(node.input_value(1), axis):
        return False
    shaped = node.input_value(0).get_node()
    source = data.get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return shaped.get_type_name() == "ShapeOf" and _is_ids(shaped.input_value(0)) and _is_ids(source.output(0))


def _is_ids(output: Any) -> bool:
    """Whether it is an input of [rows, tokens], as all such inputs of one graph are."""
    return output.get_node().get_type_name() == "Parameter" and len(output.get_partial_shape()) == 2


def _keeps_first_two(reshape: Any) -> bool:
    """Whether a Reshape is told to leave the first two axes as they are, by the very sizes of the model's ids."""
    shape = reshape.input_value(1).get_node()
    if shape.get_type_name() != "Concat" or shape.input_value(0).get_node().get_type_name() != "ShapeOf":
        return False
    rest = [_values(shape.input_value(place)) for place in range(1, shape.get_input_size())]
    return _is_ids(shape.input_value(0).get_node().input_value(0)) and all(value is not None for value in rest)
