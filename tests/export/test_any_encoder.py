"""Classifiers and embedders of families beside BERT's: both graph runtimes equal torch, alone, padded and in int8."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
from handlers.architecture.outputs.encoder import EncoderWithHead

DEBERTA = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
# kind → (family, changes of its config, pooling; None: a classifier)
CASES = {
    "deberta-v3": ("deberta-v2", DEBERTA | {"type_vocab_size": 0}, None),
    "modernbert": ("modernbert", {"local_attention": 8}, None),
    "convbert": ("convbert", {"head_ratio": 2}, None),
    "qwen3": ("qwen3", {"num_labels": 3}, None),
    "gpt2": ("gpt2", {"num_labels": 3}, None),
    "gemma3 last": ("gemma3_text", {"sliding_window": 8}, "last"),
}
SHAPES = [(1, 1), (4, 13), (2, 32)]
MAX_LENGTH = 32


def encoder_of(kind: str) -> EncoderWithHead:
    family, changes, pooling = CASES[kind]
    auto = "AutoModel" if pooling else "AutoModelForSequenceClassification"
    return EncoderWithHead(tiny(family, auto, **changes), pooling).eval()


def arrays(rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids that may be the padding's own, with padding behind all rows but the first."""
    random = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, random.integers(1, length + 1) :] = 0
    ids = np.where(mask == 1, random.integers(0, 120, (rows, length)), 0)
    ids[0, -1] = 0  # the padding's id as a text's last token
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def by_torch(encoder: EncoderWithHead, batch: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return encoder(**{name: torch.from_numpy(value) for name, value in batch.items()}).numpy()


@pytest.mark.parametrize("kind", CASES)
def test_a_row_among_others_is_the_row_alone(kind: str) -> None:
    encoder, batch = encoder_of(kind), arrays(4, 13)
    together = by_torch(encoder, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = by_torch(encoder, {name: value[row : row + 1, :length] for name, value in batch.items()})
        np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize("kind", CASES)
def test_both_runtimes_equal_torch_and_take_int8(tmp_path: Path, kind: str) -> None:
    encoder = encoder_of(kind)
    graph = export_onnx(encoder, text_tracing(encoder, max_length=MAX_LENGTH))
    names = {item.name for item in graph.model.graph.input}
    batches = [{k: torch.from_numpy(v) for k, v in arrays(1, 12, i).items() if k in names} for i in range(8)]
    for stage in (None, "weight-only", "static-int8"):
        folder = tmp_path / str(stage)
        folder.mkdir()
        if stage == "weight-only":
            weight_only(encoder.model, WeightOnly(), calibrated_on(batches))
        elif stage == "static-int8":
            static_int8(encoder.model, StaticInt8(samples=8), calibrated_on(batches, encoder))
        plan = plan_of(encoder.model)
        save_onnx(quantize_graph(graph, plan) if plan else graph.model, folder / "model.onnx")
        config = export_openvino(graph, plan, folder, widths=[32, 48] if plan else [])
        common = {"device": "cpu", "int8": False}
        for runtime, file in (("onnxruntime", "model.onnx"), ("openvino", "model.xml")):
            spec = common | {"runtime": runtime, "requirement": runtime, "model": file}
            session = open_session(folder, spec | ({"config": config} if runtime == "openvino" else {}), threads=1)
            # Ranges of eight short texts say nothing of others.
            tried = [arrays(1, 12, i) for i in range(8)] if stage == "static-int8" else [arrays(*one) for one in SHAPES]
            expected = np.concatenate([by_torch(encoder, batch) for batch in tried])
            found = np.concatenate([session.run(batch) for batch in tried])
            allowed = {None: 1e-4, "weight-only": 0.2, "static-int8": 0.3}[stage] * max(1, np.abs(expected).max())
            np.testing.assert_allclose(found, expected, atol=allowed, err_msg=f"{runtime} {stage}")


class Decoder(torch.nn.Module):
    """A decoder's classifier by hand: the hidden state of a token is its id, the score twice that."""

    base_model_prefix = "base"

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(1, 1, bias=False)
        self.score.weight.data.fill_(2.0)
        self.base_model = Base()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        raise AssertionError("its own choice of the last token is by the padding's id")


class Base(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=input_ids[:, :, None].float())


def test_the_last_real_token_is_scored_by_hand() -> None:
    """Padding behind or before; the id 0 may be the padding's and a word's."""
    encoder = EncoderWithHead(Decoder())
    ids = torch.tensor([[5, 6, 7], [5, 0, 9], [9, 3, 4], [5, 6, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]])
    assert encoder(ids, mask).tolist() == [[14.0], [0.0], [8.0], [0.0]]


@pytest.mark.parametrize(
    ("family", "changes", "takes"),
    [
        ("bert", {}, True),
        ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}, False),  # one type: nothing to tell
        ("gpt2", {}, False),  # adds the vectors of words with these ids
        ("modernbert", {}, False),
    ],
)
def test_which_models_are_given_segments(family: str, changes: dict[str, int], takes: bool) -> None:
    model = tiny(family, "AutoModelForSequenceClassification", **changes)
    assert EncoderWithHead(model).takes_type_ids is takes
