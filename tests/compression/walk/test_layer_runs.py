"""Layers that are run by themselves see what they see in the model, at the cost of the model and not of its square."""

from __future__ import annotations

import errno
import os
from collections import Counter

import numpy as np
import pytest
import torch
from any_models import tiny
from image_models import SIDE, tiny_image_model

from archiver.architecture import layer_list
from archiver.compression.calibration import MomentsSeen, moments_on, watched_inputs
from archiver.compression.modules import linear_names
from archiver.compression.walk.hidden import Hidden
from archiver.compression.walk.layer_runs import LayerRuns
from archiver.compression.walk.walk import by_layer
from archiver.errors import ArchiverError
from handlers.architecture.outputs.decoder import DecoderWithHead

IDS = torch.randint(3, 100, (5, 16), generator=torch.Generator().manual_seed(1))
TEXTS = [
    {"input_ids": IDS[:2], "attention_mask": torch.ones_like(IDS[:2])},
    {"input_ids": IDS[2:, :9], "attention_mask": torch.ones_like(IDS[2:, :9])},
]
DECODERS = ("llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2", "qwen3_moe", "opt")
ENCODERS = ("bert", "distilbert", "roberta", "modernbert", "mpnet")


class Called(torch.nn.Module):
    """A model called with all tensors of a batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**inputs).logits


def case(family: str) -> tuple[torch.nn.Module, torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """(model, module around it, batches)."""
    if family == "vit":
        model = tiny_image_model("vit")
        pixels = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
        return model, Called(model), [{"pixel_values": pixels}]
    if family in DECODERS:
        model = tiny(family, "AutoModelForCausalLM", num_hidden_layers=3)
        return model, DecoderWithHead(model), TEXTS
    model = tiny(family, "AutoModelForSequenceClassification")
    return model, Called(model), TEXTS


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS, "vit"])
def test_each_layer_sees_what_it_sees_in_the_model(family):
    model, module, batches = case(family)
    runs = LayerRuns.of(model, module, batches)
    assert runs is not None
    for layer, group in by_layer(model, [*linear_names(model), *_head(model)]):
        seen = MomentsSeen(model, group)
        if layer is not None:
            runs.go_to(layer)
        with watched_inputs(model, seen.watched, seen.see):
            if layer is None:
                runs.run_rest(seen.flush)
            else:
                runs.run_layer(seen.flush)
        expected = moments_on(model, group, module, batches)
        for name, moments in seen.moments().items():
            assert moments.tokens == expected[name].tokens
            torch.testing.assert_close(moments.gram, expected[name].gram, rtol=1e-4, atol=1e-4)
        with torch.no_grad():  # the layers above see it changed
            for name in group:
                model.get_submodule(name).weight.mul_(0.9)


def _head(model):
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head and isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("depth", [3, 6])
def test_each_layer_runs_twice_whatever_the_depth(depth):
    model = tiny("llama", "AutoModelForCausalLM", num_hidden_layers=depth)
    calls = Counter()
    for index, layer in enumerate(layer_list(model)[1]):
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.update([index]))
    runs = LayerRuns.of(model, DecoderWithHead(model), TEXTS)
    probed = dict(calls)
    assert probed == dict.fromkeys(range(depth), 2)  # in the model and by itself, on one text
    for layer in range(depth):
        runs.go_to(layer)
        runs.run_layer(lambda: None)
    runs.run_rest(lambda: None)
    assert {index: count - probed[index] for index, count in calls.items()} == dict.fromkeys(
        range(depth), 2 * len(TEXTS)
    )


def test_what_the_layers_are_called_with_is_kept_once():
    model = tiny("llama", "AutoModelForCausalLM", num_hidden_layers=4)
    same = [TEXTS[0], {name: value.clone() for name, value in TEXTS[0].items()}]
    runs = LayerRuns.of(model, DecoderWithHead(model), same)
    tensors = {id(one) for batch in runs._calls for call in batch for one in call.tensors()}
    every = [one for batch in runs._calls for call in batch for one in call.tensors()]
    assert len(every) >= 2 * 4 * 3  # of each batch and layer: a mask, and two of positions at least
    assert len(tensors) <= 4


class Skipping(torch.nn.Module):
    """Layers between which something else happens."""

    def __init__(self) -> None:
        super().__init__()
        pair = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))  # noqa: E731
        self.layers = torch.nn.ModuleList([pair(), pair()])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](input_ids) * 2)


class Handing(torch.nn.Module):
    """Layers of which the first hands something on beside the hidden states."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            bias = self.two(hidden) if bias is None else bias
            return self.one(hidden) + bias, bias

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Handing.Layer(), Handing.Layer()])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, bias = self.layers[0](input_ids)
        return self.layers[1](hidden, bias)[0]


class Backwards(Skipping):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.layers[0](self.layers[1](input_ids))


class Shared(Skipping):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1] = self.layers[0]


@pytest.mark.parametrize("kind", [Skipping, Handing, Backwards, Shared])
def test_layers_that_cannot_be_run_by_themselves(kind):
    model = kind()
    assert LayerRuns.of(model, model, [{"input_ids": torch.randn(2, 4)}]) is None


def test_layers_are_themselves_again_when_the_model_fails():
    model, module, batches = case("llama")
    runs = LayerRuns.of(model, module, batches)

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run_rest(fail)
    assert not any("forward" in layer.__dict__ for layer in layer_list(model)[1])


def test_hidden_states_in_a_file_are_what_they_are_in_memory(tmp_path):
    states = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    filed, held = Hidden.of(states, free=0, folder=tmp_path), Hidden.of(states, free=1 << 30)
    assert list(tmp_path.iterdir()) == []  # the file has no name: nothing is left behind by whatever end
    assert isinstance(filed._file, np.memmap) and held._file is None
    for hidden in (filed, held):
        hidden.put(1, torch.ones(1, 5, 4))
    assert all(torch.equal(one, other) for one, other in zip(filed, held, strict=True))
    filed.close()
    assert list(filed) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        ArchiverError, match=r"need 2 MB, .* cannot hold them: No space left on device; free some space"
    ):
        Hidden.of([torch.zeros(500_000)], free=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
