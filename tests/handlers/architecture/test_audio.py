"""Models over sound: what a recording is answered does not depend on what stands beside or behind it."""

from __future__ import annotations

import pytest
import torch
from audio_models import CLASSES, CTC, sounds, tiny_audio_model

from handlers.architecture.linear_layers import plain_convolutions
from handlers.architecture.outputs.audio import SamplesWithHead, SpectrogramWithHead, with_head

KINDS = ["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer"]
LENGTHS = (1600, 400, 2111, 777)
NORMS = [
    {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
]


def padded(fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """input_values and attention_mask of recordings of several lengths; behind their ends stands noise of that size."""
    values = fill * torch.randn(len(LENGTHS), 2300, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(values.shape, dtype=torch.int64)
    for row, samples in enumerate(sounds(*LENGTHS)):
        values[row, : len(samples)] = torch.from_numpy(samples)
        mask[row, : len(samples)] = 1
    return values, mask


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # transformers' WavLM
@pytest.mark.parametrize("norm", NORMS, ids=["group", "layer"])
@pytest.mark.parametrize("auto_class", [CTC, CLASSES])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_alone_in_transformers(kind, auto_class, norm):
    model = tiny_audio_model(kind, auto_class, **norm)
    with torch.inference_mode():
        # Alone and without a mask, as models with a group norm were trained.
        alone = [model(torch.from_numpy(samples)[None]).logits[0] for samples in sounds(*LENGTHS)]
        module = with_head(plain_convolutions(model))
        assert isinstance(module, SamplesWithHead)
        for fill in (0.0, 3.0):
            values, mask = padded(fill)
            for expected, found in zip(alone, module(values, mask), strict=True):
                real = found[: len(expected)] if auto_class == CTC else found
                torch.testing.assert_close(real, expected, atol=1e-4, rtol=0)
    assert max(float(item.abs().max()) for item in alone) > 0.05


def test_a_weighted_sum_of_layers():
    model = tiny_audio_model("wav2vec2", CLASSES, use_weighted_layer_sum=True)
    with torch.inference_mode():
        alone = torch.stack([model(torch.from_numpy(samples)[None]).logits[0] for samples in sounds(*LENGTHS)])
        torch.testing.assert_close(with_head(model)(*padded(3.0)), alone, atol=1e-4, rtol=0)


def test_a_mask_of_ones_is_no_mask():
    model = tiny_audio_model()
    values = torch.from_numpy(sounds(1500)[0])[None]
    with torch.inference_mode():
        found = with_head(model)(values, torch.ones(values.shape, dtype=torch.int64))
        torch.testing.assert_close(found, model(values).logits, atol=1e-5, rtol=0)


def test_the_model_is_left_as_it_was():
    model = tiny_audio_model()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.inference_mode():
        with_head(model)(*padded())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_gradients_reach_every_weight():
    model = tiny_audio_model()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with_head(model)(*padded()).square().mean().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == ["wav2vec2.masked_spec_embed"]


def test_plain_convolutions_compute_the_same():
    model = tiny_audio_model()
    values = torch.from_numpy(sounds(1500)[0])[None]
    with torch.inference_mode():
        before = model(values).logits
        assert not any("parametrizations" in name for name in plain_convolutions(model).state_dict())
        torch.testing.assert_close(model(values).logits, before, atol=1e-6, rtol=0)


def test_a_model_over_a_spectrogram():
    model = tiny_audio_model("audio-spectrogram-transformer", CLASSES)
    module = with_head(model)
    assert isinstance(module, SpectrogramWithHead)
    values = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(module(values), model(values).logits)
