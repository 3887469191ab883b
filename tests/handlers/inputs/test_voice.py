"""Where somebody speaks: silero-vad's network on both runtimes, and spans of its probabilities by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from archiver.models.inputs.voice import voice_file, voice_problems
from handlers.inputs.media.voice import FILE, VoiceDetector, spans_of


@pytest.fixture(scope="module")
def network() -> Path:
    if voice_problems(16_000):
        pytest.skip("silero-vad is not installed (pip install --no-deps silero-vad)")
    return voice_file()


def test_spans_by_hand():
    speech, silence = [0.9] * 10, [0.1] * 20  # 0.32 and 0.64 seconds
    samples = 512 * 80
    assert spans_of(np.array(silence + speech + silence), samples) == [(10_240 - 3_200, 15_360 + 3_200)]
    # A pause of less than half a second, a hesitation between both bounds and a click of 32 ms change nothing.
    hesitating = [0.9, 0.4, 0.4, *speech]
    assert len(spans_of(np.array(speech + silence[:10] + hesitating + silence + [0.9] + silence), samples)) == 1
    assert spans_of(np.array(speech), 5_000) == [(0, 5_000)]
    assert spans_of(np.array(silence), samples) == []
    assert spans_of(np.array([]), 0) == []


def test_both_runtimes_hear_the_same(network, shared):
    detectors = [VoiceDetector(network, runtime, runtime) for runtime in ("onnxruntime", "openvino")]
    speech, _ = soundfile.read(shared / "data/librivox/jfk.wav", dtype="float32")
    silence = np.zeros(16_000 * 20, np.float32)
    for samples in (speech, np.concatenate([silence, speech, silence, speech[:32_000]]), silence, speech[:100]):
        first, second = (detector.probabilities(samples) for detector in detectors)
        np.testing.assert_allclose(first, second, atol=1e-4)
    spans = detectors[0].spans(np.concatenate([silence, speech, silence]))
    heard = sum(end - start for start, end in spans) / 16_000
    assert spans[0][0] > 19 * 16_000 and spans[-1][1] < 32 * 16_000 and 8 < heard <= 11.5
    assert detectors[0].spans(silence) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_several_threads_listen_at_once(network, runtime):
    detector = VoiceDetector(network, runtime, runtime)
    random = np.random.default_rng(0)
    recordings = [random.standard_normal(16_000 * seconds).astype(np.float32) for seconds in (3, 5, 2, 4)]
    expected = [detector.probabilities(samples) for samples in recordings]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, alone in zip(pool.map(detector.probabilities, recordings), expected, strict=True):
                np.testing.assert_array_equal(found, alone)


def test_what_it_needs():
    assert FILE.endswith(".onnx")
    assert "this one takes 8000" in voice_problems(8_000)[0]
