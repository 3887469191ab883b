"""LoRA adapters in an OpenVINO graph: branches beside its products, and for each token the number of its text's adapter.

    y = W·x + B·(m ∘ (A·x)): A and B of all adapters side by side, m the row of a table that the token's number chooses.

What a token without an adapter gets is W·x + 0, to the last bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.storage.adapters import AdaptedLayer, Adapters

NUMBERS = "adapter_numbers"


def add_adapters(model: Any, adapters: Adapters) -> None:
    """Add the branches and the input NUMBERS [tokens, 1] int32 to an openvino.Model with paged attention, in place.

    Args:
        adapters: `places` says for each layer which MatMul computes it, and which output is the layer's alone:
            {"product": name, "output": [name, index]}.
    Raises: UnsoundArchive where the graph has no such place, or of another size.
    """
    from openvino import opset13 as ops

    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    numbers = ops.parameter([-1, 1], np.int32, name=NUMBERS)
    numbers.output(0).get_tensor().set_names({NUMBERS})
    groups: dict[tuple[int, int], list[tuple[Any, Any, AdaptedLayer]]] = {}
    for name, layer in adapters.layers.items():
        source, output = _place(nodes, name, layer, adapters.places)
        key = source.get_node().get_instance_id(), source.get_index()
        groups.setdefault(key, []).append((source, output, layer))
    chosen: dict[bytes, Any] = {}
    for group in groups.values():
        # Products of one input share their first half: fewer operations, and x is read once.
        masks = np.concatenate([layer.masks(len(adapters.names)) for _, _, layer in group], axis=1)
        key_of_masks = masks.tobytes() + bytes(str(masks.shape), "ascii")
        if key_of_masks not in chosen:
            table, axis = ops.constant(masks), ops.constant(np.array(0, np.int64))
            chosen[key_of_masks] = ops.gather(table, numbers, axis)
        a = ops.constant(np.concatenate([layer.a for _, _, layer in group]))
        inner = ops.multiply(ops.matmul(group[0][0], a, False, True), chosen[key_of_masks])
        for part, (_, output, layer) in zip(_parts(inner, group), group, strict=True):
            users = list(output.get_target_inputs())
            found = ops.add(output, ops.matmul(part, ops.constant(layer.b), False, True))
            for user in users:
                user.replace_source_output(found.output(0))
    model.add_parameters([numbers])
    model.validate_nodes_and_infer_types()


def _parts(inner: Any, group: Sequence[tuple[Any, Any, AdaptedLayer]]) -> list[Any]:
    from openvino import opset13 as ops

    if len(group) == 1:
        return [inner.output(0)]
    sizes = np.array([len(layer.a) for _, _, layer in group], np.int64)
    return list(ops.variadic_split(inner, ops.constant(np.array(-1, np.int64)), ops.constant(sizes)).outputs())


def _place(nodes: Mapping[str, Any], name: str, layer: AdaptedLayer, places: Mapping[str, Any]) -> tuple[Any, Any]:
    """(what the layer's product reads, the layer's output)."""
    try:
        place = places[name]
        source = nodes[place["product"]].input_value(0)
        node, index = place["output"]
        output = nodes[node].output(index)
        sizes = [port.get_partial_shape()[-1].get_length() for port in (source, output)]
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UnsoundArchive(f"the graph has no place for the adapters of {name}: rebuild the archive") from error
    if sizes != [layer.a.shape[1], layer.b.shape[0]]:
        raise UnsoundArchive(f"the adapters of {name} do not fit its product of {sizes}: rebuild the archive")
    return source, output
