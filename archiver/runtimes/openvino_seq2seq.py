"""OpenVINO for encoder-decoders: a graph that reads and one that writes, their constants packed where that pays."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Any

import torch

from archiver.export.graph.weights import pack_openvino
from archiver.export.openvino import WEIGHT_ONLY_GROUP
from archiver.export.openvino_seq2seq import export_seq2seq
from archiver.requirements import requirement
from archiver.runtimes.base import Export
from archiver.state.plan import plan_of
from archiver.storage.layouts import layouts_by_content
from handlers.runtimes.openvino_seq2seq import READER, WRITER
from handlers.storage.graph_weights import PACKED


def export(workload: Any, folder: Path) -> Export:
    """Write both graphs into `folder`.

    Args:
        workload: one of archiver.tasks whose task is of the execution `seq2seq`.
    """
    plan, layouts = plan_of(workload.model), layouts_by_content(workload.model)
    session = export_seq2seq(workload.model, plan, workload.tracing_example(), folder)
    weights = False
    for name in (READER, WRITER):
        if pack_openvino(folder / session[name]["model"], layouts):
            session[name]["weights"] = f"{name}/{PACKED}"
            weights = True
    # bf16 would make the answers depend on whether the host has it.
    config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    integers = plan is not None or any(layout.grouping is not None for layout in layouts.values())
    if integers:
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(_group(workload.model, plan))
    return Export(
        session
        | ({"weights": PACKED} if weights else {})
        | {
            "requirement": requirement("openvino"),
            "int8": integers,
            "config": config,
        }
    )


def _group(model: torch.nn.Module, plan: Any) -> int:
    """Channels of an activation that share a scale: one group a token with dynamic-int8, small ones else."""
    if plan is None or plan.kind == "weight-only":
        return WEIGHT_ONLY_GROUP
    linears = [model.get_submodule(name) for name in plan.linears]
    return gcd(*(linear.in_features for linear in linears if isinstance(linear, torch.nn.Linear)))
