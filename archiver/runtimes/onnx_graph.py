"""The ONNX graph that several runtimes start from, exported once a build."""

from __future__ import annotations

from archiver.export.onnx import OnnxGraph, export_onnx
from archiver.tasks.workload import Workload

_KEY = "onnx_graph"


def onnx_graph(workload: Workload) -> OnnxGraph:
    """The graph of the model as it is now. UnsupportedModelError where the exporter cannot take it."""
    if _KEY not in workload.shared:
        max_length = workload.recipe.serve.max_length
        workload.shared[_KEY] = export_onnx(workload.module, max_length=max_length)  # type: ignore[arg-type]
    graph: OnnxGraph = workload.shared[_KEY]
    return graph
