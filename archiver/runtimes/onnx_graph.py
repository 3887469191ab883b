"""The ONNX graph that several runtimes start from, exported once a build."""

from __future__ import annotations

from archiver.export.onnx import OnnxGraph, export_onnx
from archiver.tasks.forward_workload import ForwardWorkload

_KEY = "onnx_graph"


def onnx_graph(workload: ForwardWorkload) -> OnnxGraph:
    """The graph of the model as it is now. UnsupportedModelError where the exporter cannot take it."""
    if _KEY not in workload.shared:
        workload.shared[_KEY] = export_onnx(workload.module, workload.task.tracing(workload))
    graph: OnnxGraph = workload.shared[_KEY]
    return graph
