"""ONNX graph → OpenVINO IR, compressed by NNCF."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from archiver.export.graph.rewrites import rewrite
from archiver.export.onnx import OnnxGraph, save_onnx
from archiver.state.plan import QuantizationPlan

# Activations of a weight-only model are quantized in groups of this many channels where the CPU can: small enough that
# one outlier spoils little (recall@10 0.974 against 0.951 with one group a token, measured on STS-B sentences).
WEIGHT_ONLY_GROUP = 32


def export_openvino(
    exported: OnnxGraph,
    plan: QuantizationPlan | None,
    folder: Path,
    *,
    widths: Sequence[int],
    exact_products: bool = False,
) -> dict[str, Any]:
    """Write model.xml and model.bin into `folder`; returns the plugin settings the archive needs.

    widths: in_features of the quantized linears, for the activation groups of dynamic-int8 (one per token and layer,
    as far as the layers' widths allow one size for all). exact_products: weight-only leaves activations as they are.
    """
    import openvino as ov

    plain = folder / "plain.onnx"
    save_onnx(exported.model, plain)
    try:
        model = ov.convert_model(str(plain))
        # f32 everywhere else: bf16 would make the answers depend on whether the host has it.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if plan is not None:
            model = _compress(model, exported, plan)
            if plan.kind != "static-int8":
                group = WEIGHT_ONLY_GROUP if plan.kind == "weight-only" else gcd(*widths)
                group = 0 if exact_products and plan.kind == "weight-only" else group
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(group)
        rewrite(model)
        _name_by_place(model)
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    finally:
        plain.unlink(missing_ok=True)
    return config


def _name_by_place(model: Any) -> None:
    """Operations that OpenVINO made carry a number of a counter that runs on through the process (`Constant_3606`).

    Named by their place in the graph, the same model gives the same file.
    """
    for place, operation in enumerate(model.get_ordered_ops()):
        if operation.get_type_name() not in ("Parameter", "Result"):
            operation.set_friendly_name(f"{operation.get_type_name()}_{place}")


def _compress(model: Any, exported: OnnxGraph, plan: QuantizationPlan) -> Any:
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    present = {op.get_friendly_name() for op in model.get_ops()}
    chosen = {*plan.linears, *plan.embeddings, *plan.convolutions}
    weighted = {"MatMul", "Gemm", "Gather", *(["Conv"] if plan.kind == "static-int8" else [])}
    left_out = sorted(
        node.name
        for node in exported.model.graph.node
        if node.op_type in weighted
        and node.name in present
        and exported.modules.get(node.name) not in chosen
        and _has_weight(node, exported)
    )
    attends = any(node.op_type == "Softmax" for node in exported.model.graph.node)
    scope = nncf.IgnoredScope(names=left_out, validate=False) if left_out else None
    # NNCF draws tables and progress bars on standard output, which belongs to the build's own report.
    with contextlib.redirect_stdout(io.StringIO()):
        if plan.kind == "static-int8":
            return nncf.quantize(
                model,
                nncf.Dataset([_arrays(batch) for batch in plan.calibration]),
                subset_size=len(plan.calibration),
                model_type=nncf.ModelType.TRANSFORMER if attends else None,
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=scope,
            )
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=scope)


def _has_weight(node: Any, exported: OnnxGraph) -> bool:
    weights = {item.name for item in exported.model.graph.initializer if len(item.dims) == 2}
    return node.op_type == "Conv" or any(name in weights for name in node.input)


def _arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}
