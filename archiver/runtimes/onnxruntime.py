"""ONNX Runtime: model.onnx, its large constants packed beside it where that saves enough."""

from __future__ import annotations

from pathlib import Path

from archiver.export.graph.weights import pack_onnx
from archiver.export.onnx import save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.runtimes.onnx_graph import onnx_graph
from archiver.state.plan import plan_of
from archiver.storage.layouts import layouts_by_content
from archiver.tasks.forward_workload import ForwardWorkload
from handlers.storage.graph_weights import PACKED

MODEL = "model.onnx"


def export(workload: ForwardWorkload, folder: Path) -> Export:
    """Write model.onnx, and weights.safetensors where packing pays, into `folder`."""
    graph, plan = onnx_graph(workload), plan_of(workload.model)
    save_onnx(quantize_graph(graph, plan) if plan else graph.model, folder / MODEL)
    packed = pack_onnx(folder / MODEL, layouts_by_content(workload.model))
    session = {"requirement": requirement("onnxruntime"), "int8": plan is not None, "model": MODEL}
    return Export(session | ({"weights": PACKED} if packed else {}))
