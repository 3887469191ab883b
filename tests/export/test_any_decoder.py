"""Decoders of many families as OpenVINO IR: torch's logits at once and step by step, and what GenAI continues with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_models import tiny
from greedy import continue_greedily
from stage_context import calibrated_on

from archiver.architecture import kv_shapes
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only
from archiver.errors import UnsupportedModelError
from archiver.export.decoder_check import check_answers
from archiver.export.decoder_configs import decoder_config
from archiver.export.openvino_decoder import IR, export_decoder
from archiver.state.plan import plan_of

pytest.importorskip("optimum.exporters.openvino", reason="optimum-intel is not installed")
genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
ov = pytest.importorskip("openvino", reason="openvino is not installed")

AUTO = "AutoModelForCausalLM"
PROMPTS = ([5, 9, 20, 31, 7], [100, 99, 50], [30, 30, 30, 11, 12, 13, 14, 60, 61, 62])
F32: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "INFERENCE_NUM_THREADS": 1,
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
# kind → (family, changes of its config): made for other releases, no positions but slopes, fused projections, experts, none
# of optimum's at all
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", WINDOW),
    "bloom": ("bloom", {"hidden_size": 32}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "mixtral": ("mixtral", {}),
    "olmo3": ("olmo3", WINDOW),
}


def by_genai(folder: Path, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipe = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", F32)
    handles = []
    for index, ids in enumerate(prompts):
        how = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True)
        how.set_eos_token_id(0)
        how.stop_token_ids = {0}
        handles.append(pipe.add_request(index, ov.Tensor(np.array([ids], np.int64)), how))
    while pipe.has_non_finished_requests():
        pipe.step()
    return [handle.read_all()[0].generated_ids for handle in handles]


@pytest.mark.parametrize("kind", CASES)
def test_openvino_answers_as_torch_does(tmp_path: Path, kind: str) -> None:
    family, changes = CASES[kind]
    model = tiny(family, AUTO, **changes)
    export_decoder(model, None, tmp_path)
    check_answers(model, tmp_path)
    expected = [continue_greedily(model, ids, 6, ()) for ids in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 1
    assert by_genai(tmp_path, PROMPTS, 6) == expected
    text = (tmp_path / IR).read_text()
    assert text.count('type="ScaledDotProductAttention"') == 2


def test_experts_lie_there_as_integers(tmp_path: Path) -> None:
    model = tiny("mixtral", AUTO)
    weight_only(model, WeightOnly(), calibrated_on([]))
    export_decoder(model, plan_of(model), tmp_path)
    graph = ov.Core().read_model(tmp_path / IR)
    kinds = [node.get_element_type().get_type_name() for node in graph.get_ops() if _is_expert(node)]
    assert kinds == ["i8"] * (2 * 4 * 2)  # layers, experts, up and down


def _is_expert(node: Any) -> bool:
    return node.get_type_name() == "Constant" and list(node.shape) in ([96, 32], [32, 48])


def test_what_the_exporter_leaves_out_is_refused(tmp_path: Path) -> None:
    """Gemma 2 caps its attention's scores; the operation that paged attention takes the place of cannot."""
    model = tiny("gemma2", AUTO, attn_logit_softcapping=0.5)
    with pytest.raises(
        UnsupportedModelError, match="Gemma2ForCausalLM: its OpenVINO graph answers differently from torch"
    ):
        export_decoder(model, None, tmp_path)


def test_what_only_paged_attention_leaves_out_is_refused(tmp_path: Path) -> None:
    """MPT's slopes: the graph with state has them, the pipeline that serves does not."""
    model = tiny("mpt", AUTO, d_model=32, n_heads=4, n_layers=2, max_seq_len=64)
    with pytest.raises(
        UnsupportedModelError, match="MptForCausalLM: its OpenVINO graph answers differently from torch"
    ):
        export_decoder(model, None, tmp_path)


def test_what_keeps_no_keys_and_values_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not all of its layers keep keys and values of all tokens"):
        decoder_config(tiny("mamba", AUTO, state_size=4))


@pytest.mark.parametrize(
    ("family", "changes", "shapes"),
    [
        ("qwen3", {}, [(2, 8, 8)] * 2),
        ("gpt_neox", {}, [(4, 8, 8)] * 2),
        ("phi3", {}, [(2, 8, 8)] * 2),
        ("gpt_bigcode", {}, [(1, 8, 8)] * 2),  # one key for all heads
    ],
)
def test_shapes_in_the_cache(family: str, changes: dict[str, Any], shapes: list[tuple[int, int, int]]) -> None:
    assert kv_shapes(tiny(family, AUTO, **changes)) == shapes
