"""Layers of models over sound: the same parts are found as in models over texts."""

from __future__ import annotations

import pytest
import torch
from audio_models import CLASSES, CTC, tiny_audio_model

from archiver.architecture import layer_parts
from archiver.architecture.random_inputs import random_inputs
from handlers.architecture.linear_layers import plain_convolutions

SPECTROGRAM = "audio-spectrogram-transformer"


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "unispeech-sat", "data2vec-audio"])
@pytest.mark.parametrize("auto_class", [CTC, CLASSES])
def test_heads_and_neurons_are_found(kind, auto_class):
    for layer in layer_parts(plain_convolutions(tiny_audio_model(kind, auto_class))):
        assert [(cut.kind, cut.blocks) for cut in layer.cuts] == [("heads", 4), ("neurons", 48)], layer.refused


def test_a_layer_with_two_feed_forward_blocks():
    for layer in layer_parts(tiny_audio_model("wav2vec2-conformer")):
        assert sorted((cut.kind, cut.blocks) for cut in layer.cuts) == [("heads", 4), ("neurons", 48), ("neurons", 48)]


def test_models_over_a_spectrogram():
    for layer in layer_parts(tiny_audio_model(SPECTROGRAM, CLASSES)):
        assert sorted((cut.kind, cut.blocks) for cut in layer.cuts) == [("heads", 4), ("neurons", 48)], layer.refused


def test_random_sounds_make_as_many_frames_as_asked_for():
    model = tiny_audio_model()
    inputs = random_inputs(model, 2, 7, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(**inputs).logits.shape[:2] == (2, 7)
