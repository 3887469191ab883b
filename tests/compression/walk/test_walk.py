"""The walk through the layers: what each visit sees, and that an interrupted walk goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from any_models import tiny
from stage_context import calibrated_on

from archiver.compression.quantize.algorithms.gptq import gptq_model
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.walk import in_file
from archiver.compression.walk import walk as walks
from archiver.compression.walk.walk import walk
from archiver.errors import ArchiverError
from handlers.architecture.outputs.decoder import DecoderWithHead

IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
DEPTH = 4


def context_of(model, checkpoint=None):
    context = calibrated_on(BATCHES, DecoderWithHead(model))
    context.checkpoint = checkpoint
    return context


def llama():
    return tiny("llama", "AutoModelForCausalLM", num_hidden_layers=DEPTH)


def names_of(model):
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def halving(model, visited, stop=None):
    """A visit that halves weights, and notes what it saw; ends at the `stop`-th."""

    def visit(group, moments):
        if len(visited) == stop:
            raise KeyboardInterrupt
        visited.append((group[-1], float(moments[group[0]].gram.trace())))
        with torch.no_grad():
            for name in group:
                model.get_submodule(name).weight.mul_(0.5)
        return {f"{group[-1]}.seen": moments[group[-1]].gram}

    return visit


def test_the_layers_alone_and_the_whole_model_give_the_same_walk(monkeypatch):
    found = []
    for alone in (True, False):
        if not alone:
            monkeypatch.setattr(walks.LayerRuns, "of", lambda *_: None)
        model, visited = llama(), []
        kept = walk(model, names_of(model), context_of(model), 2, halving(model, visited), method="halving")
        found.append((visited, kept))
    (alone, kept), (whole, others) = found
    assert [name for name, _ in alone] == [*(f"model.layers.{i}.mlp.down_proj" for i in range(DEPTH)), "lm_head"]
    assert [size for _, size in alone] == pytest.approx([size for _, size in whole], rel=1e-4)
    assert kept.keys() == others.keys()


def test_an_interrupted_walk_goes_on_at_its_layer(tmp_path):
    whole, visited = llama(), []
    kept = walk(whole, names_of(whole), context_of(whole), 2, halving(whole, visited), method="halving")

    model, first = llama(), []
    with pytest.raises(KeyboardInterrupt):
        walk(
            model,
            names_of(model),
            context_of(model, tmp_path / "0-x"),
            2,
            halving(model, first, stop=2),
            method="halving",
        )
    again, second, said = llama(), [], []
    context = context_of(again, tmp_path / "0-x")
    context.say = said.append
    found = walk(again, names_of(again), context, 2, halving(again, second), method="halving")
    assert [name for name, _ in first + second] == [name for name, _ in visited]
    assert len(second) == DEPTH + 1 - 2
    assert said[0].strip() == "halving: goes on behind model.layers.1.mlp.down_proj, 14 of 29 modules"
    assert found.keys() == kept.keys() and all(torch.allclose(found[name], kept[name]) for name in kept)
    for one, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    third: list = []
    walk(
        whole,
        names_of(whole),
        context_of(whole, tmp_path / "0-x"),
        2,
        halving(whole, third),
        method="halving",
    )
    assert len(third) == DEPTH + 1  # other weights: another walk
    assert all(file.name.startswith("0-x-walk-") for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == DEPTH + 1  # the files of the first are gone


def test_a_half_written_file_is_done_again(tmp_path):
    model = llama()
    walk(model, names_of(model), context_of(model, tmp_path / "0-x"), 2, halving(model, []), method="halving")
    files = sorted(tmp_path.iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-8])
    again, visited = llama(), []
    walk(again, names_of(again), context_of(again, tmp_path / "0-x"), 2, halving(again, visited), method="halving")
    assert [name for name, _ in visited] == [*(f"model.layers.{i}.mlp.down_proj" for i in range(1, DEPTH)), "lm_head"]


def test_a_full_disk_ends_the_walk_with_one_sentence(tmp_path, monkeypatch):
    def full(tensors, part):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("archiver.compression.walk.saved.save_file", full)
    model = llama()
    with pytest.raises(ArchiverError, match=r"cannot be written to .*No space left on device; free some space there"):
        walk(model, names_of(model), context_of(model, tmp_path / "0-x"), 2, halving(model, []), method="halving")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[2], *sys.argv[3].split(os.pathsep)]
from pathlib import Path
from test_walk import *
from archiver.compression.walk import saved
kept = saved.SavedWalk.keep
def keep(self, place, *more):
    kept(self, place, *more)
    if place == 1:
        os.kill(os.getpid(), signal.SIGKILL)
saved.SavedWalk.keep = keep
quantize(llama(), Path(sys.argv[1]) / "0-x")
"""


def quantize(model, checkpoint=None):
    """GPTQ with 4 bits on all layers; the notes of its progress."""
    said: list[str] = []
    context = context_of(model, checkpoint)
    context.say = said.append
    names = [name for name in names_of(model) if "layers" in name]
    options = WeightOnly(bits=4, group_size=16, algorithm="gptq", samples=2)
    return gptq_model(model, dict.fromkeys(names, 4), options, context).grids, said


def test_gptq_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    here = Path(__file__).parent
    support = os.pathsep.join([str(here.parent.parent / "support"), str(here.parent.parent.parent)])
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(here), support], capture_output=True, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    again, whole = llama(), llama()
    grids, said = quantize(again, tmp_path / "0-x")
    expected, _ = quantize(whole)
    assert "goes on behind model.layers.1.mlp.down_proj, 14 of 28 modules" in said[0]
    assert all(torch.equal(grids[name].scale, expected[name].scale) for name in expected)
    for one, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gptq_of_weights_that_lie_in_a_file_gives_the_same(tmp_path, monkeypatch):
    whole, large = llama(), llama()
    expected, _ = quantize(whole)
    monkeypatch.setattr(in_file, "LARGE", 0)
    grids, _ = quantize(large, tmp_path / "checkpoints" / "0-x")
    assert len({weight.untyped_storage().data_ptr() for weight in large.parameters()}) == 1  # one file
    assert all(torch.equal(grids[name].scale, expected[name].scale) for name in expected)
    for one, other in zip(large.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
