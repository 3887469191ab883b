"""Which products a graph that OpenVINO has compiled computes in integers."""

from __future__ import annotations

from typing import Any


def takes_integers(compiled: Any) -> bool:
    """Whether its products take activations in 8 bits, as the graph has them; others tell their weights' precision."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    info = [{key: str(value.astype(str)) for key, value in node.get_rt_info().items()} for node in nodes]
    return any(one["runtimePrecision"] == "u8" for one in info if one["layerType"] == "FullyConnected")
