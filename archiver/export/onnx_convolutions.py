"""Convolutions of an ONNX graph in int8, by ONNX Runtime's own quantizer: static ranges, QDQ form.

Its kernels take a convolution with the activation behind it only where what goes in and what comes out is quantized, and a
norm of batches is folded into the convolution by then: the ranges are measured on the graph, not on the torch module.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from archiver.export.onnx import OnnxGraph
from archiver.state.plan import QuantizationPlan

# Beside convolutions: what their kernels or the next convolution's input can take in without leaving the integers.
_BETWEEN = ("Relu", "Clip", "MaxPool")


def quantize_convolutions(exported: OnnxGraph, plan: QuantizationPlan) -> onnx.ModelProto:
    """A copy of the graph with the convolutions of `plan` in int8: weights symmetric per channel, activations affine.

    Names of all other nodes stay. Left as it is where attention runs: there the one convolution cuts an image into patches,
    and costs little.
    """
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    chosen = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and exported.modules.get(node.name) in set(plan.convolutions)
    ]
    if not chosen or any(node.op_type == "Softmax" for node in model.graph.node):
        return model
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    between = [node.name for node in model.graph.node if node.op_type in _BETWEEN]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to run a tool of its own before
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "quantized.onnx"
            quantize_static(
                model,
                target,
                _Batches(plan.calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", *_BETWEEN],
                nodes_to_quantize=[*chosen, *between],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"CalibMovingAverage": True},
            )
            return onnx.load(target)
    finally:
        root.setLevel(level)


class _Batches:
    """Calibration batches as ONNX Runtime's quantizer asks for them."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self._left: Iterator[Mapping[str, Any]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {name: np.asarray(value) for name, value in batch.items()}
