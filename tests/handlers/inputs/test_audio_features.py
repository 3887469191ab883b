"""Features of sound: what numpy alone makes is what transformers' feature extractors make."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from handlers.inputs.media.audio_features import KaldiMel, Waveform, WhisperMel, from_settings, to_settings

RATE = 16_000


def noise(samples: int) -> np.ndarray:
    random = np.random.default_rng(samples)
    time = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (150 + 900 * time) * time).astype(np.float32)
    return tone * 0.2 + 0.01 * random.standard_normal(samples).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(shared: Path) -> list[np.ndarray]:
    """Real speech: three read sentences."""
    return [soundfile.read(path, dtype="float32")[0] for path in sorted((shared / "data/librivox").glob("*.wav"))]


def wav2vec2(samples: np.ndarray, normalize: bool) -> np.ndarray:
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=normalize)
    return extractor(samples, sampling_rate=RATE, return_tensors="np")["input_values"][0]


def whisper(samples: np.ndarray, bins: int) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bins)
    return extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0].T


def ast(samples: np.ndarray, **settings: object) -> np.ndarray:
    from transformers import ASTFeatureExtractor

    with warnings.catch_warnings():
        # With its own 128 bands the lowest ones lie between two places of the spectrum; transformers says so each time.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        extractor = ASTFeatureExtractor(**settings)
    found: np.ndarray = extractor(samples, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    return found


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("samples", [2, 401, 16_000, 63_211])
def test_waveform_equals_transformers(normalize, samples):
    sound = noise(samples) + 0.3
    assert_equal(Waveform(normalize=normalize)(sound), wav2vec2(sound, normalize))


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [1, 399, 16_000, 480_000, 500_001])
def test_whisper_mel_equals_transformers(bins, samples):
    sound = noise(samples)
    assert_equal(WhisperMel(bins=bins)(sound), whisper(sound, bins))


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 163_840, 200_001])
def test_kaldi_mel_equals_transformers(samples):
    sound = noise(samples)
    assert_equal(KaldiMel()(sound), ast(sound))


def test_kaldi_mel_of_other_sizes_equals_transformers():
    sound = noise(30_000)
    expected = ast(sound, num_mel_bins=64, max_length=100, mean=-1.0, std=2.0)
    assert_equal(KaldiMel(bins=64, frames=100, mean=-1.0, deviation=2.0)(sound), expected)
    assert_equal(KaldiMel(normalize=False, frames=300)(sound), ast(sound, do_normalize=False, max_length=300))


def test_real_recordings_equal_transformers(recordings):
    for sound in recordings:
        assert_equal(Waveform()(sound), wav2vec2(sound, True))
        assert_equal(WhisperMel()(sound), whisper(sound, 80))
        assert_equal(KaldiMel()(sound), ast(sound))


def test_silence_has_finite_features():
    silence = np.zeros(RATE, np.float32)
    assert_equal(Waveform()(silence), wav2vec2(silence, True))
    assert_equal(WhisperMel()(silence), whisper(silence, 80))
    assert_equal(KaldiMel()(silence), ast(silence))


@pytest.mark.parametrize("features", [Waveform(8_000, False, 400), WhisperMel(bins=128), KaldiMel(frames=64)])
def test_settings_come_back(features):
    assert from_settings(to_settings(features)) == features
