"""The two graphs of an encoder-decoder answer as torch does: rows that leave, beams, integers, the same bytes again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_seq2seq import VOCABULARY, model_of

from archiver.architecture.tracing import SourceExample
from archiver.compression.quantize.int8 import weight_only
from archiver.compression.quantize.options import WeightOnly
from archiver.export.openvino_seq2seq import export_seq2seq
from archiver.state.plan import plan_of
from handlers.runtimes.openvino_seq2seq import OpenVinoSeq2Seq
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

SPEC = {"requirement": "openvino", "config": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}}


def sources(pad: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY - 2, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 7:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def exported(model, folder: Path) -> OpenVinoSeq2Seq:
    example = SourceExample({name: value[:2] for name, value in sources(model.config.pad_token_id).items()})
    return OpenVinoSeq2Seq(folder, {**export_seq2seq(model, plan_of(model), example, folder), **SPEC}, 1)


# (ids, parents, places) of each step: all rows, the middle one gone, two beams of each, one left.
STEPS = [
    ([[5], [6], [7]], [0, 1, 2], [0, 1, 2]),
    ([[8], [9]], [0, 2], [0, 2]),
    ([[4], [5], [6], [7]], [0, 0, 1, 1], [0, 0, 2, 2]),
    ([[9], [3], [8], [2]], [1, 0, 3, 3], [0, 0, 2, 2]),
    ([[5], [6]], [2, 3], [2, 2]),
]


@pytest.mark.parametrize("family", ["t5", "bart", "mbart", "marian"])
def test_graphs_answer_as_torch(family, tmp_path) -> None:
    model = model_of(family)
    arrays = {name: value.numpy() for name, value in sources(model.config.pad_token_id).items()}
    served = exported(model, tmp_path)
    decoders = [TorchSeq2Seq.of_model(model).read(arrays), served.read(arrays)]
    for ids, parents, places in STEPS:
        ours, found = (decoder.step(np.array(ids, np.int64), parents, places).copy() for decoder in decoders)
        np.testing.assert_allclose(found, ours, atol=2e-4 * np.abs(ours).max())
    decoders[1].close()
    # The request is used again, and has forgotten what it wrote.
    again = served.read(arrays).step(np.array([[5], [6], [7]]), [0, 1, 2], [0, 1, 2])
    first = TorchSeq2Seq.of_model(model).read(arrays).step(np.array([[5], [6], [7]]), [0, 1, 2], [0, 1, 2])
    np.testing.assert_allclose(again, first, atol=2e-4 * np.abs(first).max())


def test_integers_lie_in_both_graphs_and_the_same_model_gives_the_same_bytes(tmp_path) -> None:
    digests = []
    for name in ("one", "two"):
        model = model_of("t5")
        weight_only(model, WeightOnly(), None)  # type: ignore[arg-type]  # 8 bits look at no example
        (tmp_path / name).mkdir()
        exported(model, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        assert [str(path.relative_to(tmp_path / name)) for path in files] == [
            f"{part}/model.{kind}" for part in ("reader", "writer") for kind in ("bin", "xml")
        ]
        assert all('element_type="i8"' in path.read_text() for path in files if path.suffix == ".xml")
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]


def test_the_model_stays_as_it_was(tmp_path) -> None:
    model = model_of("bart").train()
    before = model.config.to_dict(), model.config._attn_implementation
    exported(model, tmp_path)
    assert (model.config.to_dict(), model.config._attn_implementation) == before
    assert model.training and all("forward" not in vars(module) for module in model.modules())
