"""onnx-reference: model.onnx in fp32, for the evaluator that the onnx package brings."""

from __future__ import annotations

from pathlib import Path

from archiver.errors import UnsupportedModelError
from archiver.export.onnx import save_onnx
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.runtimes.onnx_graph import onnx_graph
from archiver.state.plan import plan_of
from archiver.tasks.workload import Workload

MODEL = "model.onnx"


def export(workload: Workload, folder: Path) -> Export:
    """Write model.onnx into `folder`.

    Args:
        workload: the compressed model.
        folder: the staged archive.
    Returns: the settings that OnnxReferenceSession opens the model with.
    Raises: UnsupportedModelError where a stage planned integers, or the exporter cannot take the model.
    """
    if plan_of(workload.model) is not None:
        raise UnsupportedModelError("onnx-reference computes in fp32: remove the quantize stage, or use onnxruntime")
    save_onnx(onnx_graph(workload).model, folder / MODEL)
    return Export({"requirement": requirement("onnx"), "int8": False, "model": MODEL})
