"""OpenVINO for tasks of one pass: IR from the ONNX graph, compressed by NNCF, its constants packed where that pays."""

from __future__ import annotations

from pathlib import Path

import torch

from archiver.export.graph.weights import pack_openvino
from archiver.export.openvino import export_openvino
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.runtimes.onnx_graph import onnx_graph
from archiver.state.plan import plan_of
from archiver.storage.layouts import layouts_by_content
from archiver.tasks.forward_workload import ForwardWorkload
from handlers.storage.graph_weights import PACKED

MODEL = "model.xml"


def export(workload: ForwardWorkload, folder: Path) -> Export:
    """Write model.xml with model.bin or weights.safetensors into `folder`."""
    graph, plan = onnx_graph(workload), plan_of(workload.model)
    linears = [workload.model.get_submodule(name) for name in plan.linears] if plan else []
    widths = [linear.in_features for linear in linears if isinstance(linear, torch.nn.Linear)]
    config = export_openvino(graph, plan, folder, widths=widths, exact_products=workload.task.exact_products)
    packed = pack_openvino(folder / MODEL, layouts_by_content(workload.model))
    session = {"requirement": requirement("openvino"), "int8": plan is not None, "model": MODEL, "config": config}
    if workload.precision == "bf16":
        session |= {"bf16": True, "config": config | {"INFERENCE_PRECISION_HINT": "bf16"}}
    return Export(session | ({"weights": PACKED} if packed else {}), batching=_shapes(workload))


def _shapes(workload: ForwardWorkload) -> dict[str, object]:
    """The sizes that rows and lengths of sub-batches are filled up to.

    OpenVINO prepares kernels for each shape, 5-10 ms and 2 MB a time: some fifty shapes, not two thousand.
    """
    return {"max_rows": 16, "row_sizes": [1, 2, 4, 8, 16], "length_sizes": workload.task.sizes(workload.recipe.serve)}
