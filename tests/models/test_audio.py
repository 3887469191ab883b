"""What a model directory says of sound: its features and tokens, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audio_models import CONVOLUTIONS, SIZES, TOKENS

from archiver.errors import UnsupportedModelError
from archiver.models.inputs.audio import convolutions_of, least_samples, read_alphabet, read_features
from handlers.inputs.media.audio_features import KaldiMel, Waveform

SAMPLES = {"model_type": "wav2vec2", **SIZES}
SPECTROGRAM = {"model_type": "audio-spectrogram-transformer", "num_mel_bins": 32, "max_length": 64}


def written(folder: Path, name: str = "preprocessor_config.json", **settings: Any) -> Path:
    (folder / name).write_text(json.dumps(settings))
    return folder


def test_samples(tmp_path):
    found = read_features(written(tmp_path, sampling_rate=8_000, do_normalize=False), SAMPLES)
    assert found == Waveform(8_000, False, 30)
    assert convolutions_of(SAMPLES) == [list(pair) for pair in CONVOLUTIONS]
    assert least_samples([[10, 5], [3, 2], [3, 2], [3, 2], [3, 2], [2, 2], [2, 2]]) == 400


def test_a_spectrogram(tmp_path):
    settings = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 32, "max_length": 64, "std": 4.0}
    assert read_features(written(tmp_path, **settings), SPECTROGRAM) == KaldiMel(bins=32, frames=64, deviation=4.0)


def test_a_processors_file(tmp_path):
    nested = {"feature_extractor": {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}}
    assert read_features(written(tmp_path, "processor_config.json", **nested), SAMPLES) == Waveform(min_samples=30)


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        (None, SAMPLES, r"it has no preprocessor_config\.json or processor_config\.json"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, SAMPLES, "its feature extractor is WhisperFeature"),
        ({"sampling_rate": "16k"}, SAMPLES, "sampling_rate is '16k'; allowed: 1000 to 192000"),
        ({}, SPECTROGRAM, "its feature extractor gives samples, and audio-spectrogram-transformer takes a spectrogram"),
        ({"feature_extractor_type": "ASTFeatureExtractor"}, SAMPLES, "gives a spectrogram, and wav2vec2 takes samples"),
        ({"feature_extractor_type": "ASTFeatureExtractor"}, SPECTROGRAM, "makes 1024 frames of 128 mel bins, the model"),
    ],
)  # fmt: skip
def test_features_that_do_not_fit(tmp_path, settings, config, message):
    if settings is not None:
        written(tmp_path, **settings)
    with pytest.raises(UnsupportedModelError, match=message):
        read_features(tmp_path, config)


def test_tokens(tmp_path):
    written(tmp_path, "vocab.json", **{token: place for place, token in enumerate(TOKENS)})
    written(tmp_path, "tokenizer_config.json", bos_token=None, eos_token=None, do_lower_case=True)
    found = read_alphabet(tmp_path, len(TOKENS))
    assert found["tokens"] == TOKENS
    assert (found["blank"], found["delimiter"], found["space"], found["lower"]) == ("<pad>", "|", " ", True)


def test_tokens_that_are_missing(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"it has no vocab\.json"):
        read_alphabet(tmp_path, 12)
    written(tmp_path, "vocab.json", A=0, B=1)
    with pytest.raises(
        UnsupportedModelError, match="its padding token, a CTC model's blank, is '<pad>'; allowed: one of"
    ):
        read_alphabet(tmp_path, 2)
