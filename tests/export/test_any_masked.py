"""Masked language models of several families: both graph runtimes equal torch at the asked places, also in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_models import tiny
from sessions import open_session
from stage_context import calibrated_on

from archiver.architecture.tracing import text_tracing
from archiver.compression.quantize.int8 import static_int8, weight_only
from archiver.compression.quantize.options import StaticInt8, WeightOnly
from archiver.export.onnx import export_onnx, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.state.plan import plan_of
from handlers.architecture.outputs.masked import MaskedModel

CASES: dict[str, dict[str, Any]] = {
    "bert": {},
    "deberta-v2": {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "type_vocab_size": 0,
    },
    "modernbert": {"local_attention": 8},
}
SHAPES = [(1, 1, 1), (4, 13, 4), (2, 32, 1)]  # rows, tokens, places
ALLOWED = {"none": 1e-4, "weight-only": 0.2, "static-int8": 0.3}


def arrays(rows: int, length: int, places: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = np.maximum(1, np.array([length, *random.integers(1, length + 1, rows - 1)]))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, random.integers(5, 120, (rows, length)), 0)
    asked = random.integers(0, lengths[:, None], (rows, places))
    return {"input_ids": ids, "attention_mask": mask, "places": asked, "token_type_ids": np.zeros_like(ids)}


def by_torch(module: MaskedModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return module(**{name: torch.from_numpy(batch[name]) for name in module.inputs}).numpy()


@pytest.mark.parametrize("family", CASES)
def test_both_runtimes_equal_torch_at_the_asked_places(tmp_path: Path, family: str) -> None:
    module = MaskedModel(tiny(family, "AutoModelForMaskedLM", **CASES[family])).eval()
    graph = export_onnx(module, text_tracing(module, max_length=32, max_places=4))
    batches = [{k: torch.from_numpy(v) for k, v in arrays(1, 12, 4, i).items() if k in module.inputs} for i in range(8)]
    for stage, allowed in ALLOWED.items():
        folder = tmp_path / stage
        folder.mkdir()
        if stage == "weight-only":
            weight_only(module.model, WeightOnly(), calibrated_on(batches, module))
        elif stage == "static-int8":
            static_int8(module.model, StaticInt8(samples=8), calibrated_on(batches, module))
        plan = plan_of(module.model)
        save_onnx(quantize_graph(graph, plan) if plan else graph.model, folder / "model.onnx")
        config = export_openvino(graph, plan, folder, widths=[32, 48] if plan else [])
        for runtime, file in (("onnxruntime", "model.onnx"), ("openvino", "model.xml")):
            spec = {"device": "cpu", "int8": False, "runtime": runtime, "requirement": runtime, "model": file}
            session = open_session(folder, spec | ({"config": config} if runtime == "openvino" else {}), threads=1)
            tried = (
                [arrays(1, 12, 4, i) for i in range(8)] if stage == "static-int8" else [arrays(*one) for one in SHAPES]
            )
            for batch in tried:
                expected, found = by_torch(module, batch), session.run(batch)
                peak = max(1, np.abs(expected).max())
                np.testing.assert_allclose(found, expected, atol=allowed * peak, err_msg=f"{runtime} {stage}")
