"""What a model over sound computes on, made of samples with numpy alone: the samples themselves, or their spectrum in mel
bands. Each is what transformers' feature extractor makes, within 1e-4."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

_FRAMES = 3000  # computed at a time: it bounds the memory that a long recording takes


class Features(Protocol):
    """One kind of features. rate: samples a second. min_samples: least samples that make some."""

    @property
    def rate(self) -> int: ...

    @property
    def min_samples(self) -> int: ...

    @property
    def span(self) -> int:
        """Samples that they are made of, whatever the recording has; 0: they are as long as the recording."""
        ...

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """[samples] float32 at `rate` → features float32, the first axis is time."""
        ...


@dataclass(frozen=True)
class Waveform:
    """The samples, with zero mean and unit variance where `normalize` says so.

    Source: Wav2Vec2FeatureExtractor of transformers.
    """

    rate: int = 16_000
    normalize: bool = True
    min_samples: int = 1
    span: ClassVar[int] = 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """[samples] → [samples]."""
        if not self.normalize:
            return samples.astype(np.float32, copy=False)
        centred = samples - samples.mean(dtype=np.float64)
        found: np.ndarray = centred / np.sqrt(centred.var() + 1e-7)
        return found.astype(np.float32)


@dataclass(frozen=True)
class WhisperMel:
    """log₁₀ of the energy in mel bands, of a recording padded with silence, or cut, to `seconds`.

    Source: WhisperFeatureExtractor of transformers; mel bands as Slaney's Auditory Toolbox has them.
    """

    rate: int = 16_000
    bins: int = 80
    window: int = 400
    hop: int = 160
    seconds: float = 30.0
    min_samples: int = 1

    @property
    def span(self) -> int:
        """Samples of `seconds`."""
        return round(self.seconds * self.rate)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """[samples] → [frames, bins]; frames are seconds · rate / hop."""
        whole = np.zeros(self.span, np.float32)
        whole[: len(samples)] = samples[: len(whole)]
        padded = np.pad(whole, self.window // 2, mode="reflect")
        energy = _energies(padded, self._taper, self.hop, len(whole) // self.hop, self.window)
        logs = np.log10(np.maximum(energy @ self._bands, 1e-10))
        found: np.ndarray = (np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0
        return found.astype(np.float32)

    @cached_property
    def _taper(self) -> np.ndarray:
        return np.hanning(self.window + 1)[:-1]

    @cached_property
    def _bands(self) -> np.ndarray:
        """[window / 2 + 1, bins], each band a triangle of the same area."""
        edges = _from_slaney(np.linspace(_to_slaney(0.0), _to_slaney(self.rate / 2), self.bins + 2))
        bands = _triangles(np.linspace(0, self.rate // 2, self.window // 2 + 1), edges)
        found: np.ndarray = bands * (2.0 / (edges[2:] - edges[:-2]))
        return found


@dataclass(frozen=True)
class KaldiMel:
    """Natural logarithm of the energy in mel bands as Kaldi computes them, padded with zeros or cut to `frames`.

    Source: ASTFeatureExtractor of transformers (its path without torchaudio).
    """

    rate: int = 16_000
    bins: int = 128
    frames: int = 1024
    mean: float = -4.2677393
    deviation: float = 4.5689974
    normalize: bool = True
    min_samples: int = 400  # one window

    @property
    def span(self) -> int:
        """Samples that fill all frames."""
        return (self.frames - 1) * 160 + 400

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """[samples] → [frames, bins]."""
        window, hop, length = 400, 160, 512
        count = min(self.frames, 1 + (len(samples) - window) // hop)
        energy = _energies(samples, self._taper, hop, count, length, emphasis=0.97)
        found = np.zeros((self.frames, self.bins), np.float32)
        found[:count] = np.log(np.maximum(energy @ self._bands, np.finfo(np.float32).eps))
        return (found - np.float32(self.mean)) / np.float32(2 * self.deviation) if self.normalize else found

    @cached_property
    def _taper(self) -> np.ndarray:
        return np.hanning(400)

    @cached_property
    def _bands(self) -> np.ndarray:
        """[257, bins], triangles on the mel axis from 20 Hz on."""
        edges = np.linspace(_to_kaldi(20.0), _to_kaldi(self.rate // 2), self.bins + 2)
        return _triangles(_to_kaldi(self.rate / 512 * np.arange(257)), edges)


_KINDS: dict[str, type[Waveform] | type[WhisperMel] | type[KaldiMel]] = {
    "waveform": Waveform,
    "whisper-mel": WhisperMel,
    "kaldi-mel": KaldiMel,
}


def to_settings(features: Waveform | WhisperMel | KaldiMel) -> dict[str, Any]:
    """Features as serving.json holds them: their kind's name and its fields."""
    kind = next(name for name, made in _KINDS.items() if isinstance(features, made))
    return {"kind": kind} | {item.name: getattr(features, item.name) for item in fields(features)}


def from_settings(settings: Mapping[str, Any]) -> Waveform | WhisperMel | KaldiMel:
    """What `to_settings` wrote."""
    return _KINDS[settings["kind"]](**{name: value for name, value in settings.items() if name != "kind"})


def _energies(
    samples: np.ndarray, taper: np.ndarray, hop: int, count: int, length: int, emphasis: float | None = None
) -> np.ndarray:
    """The energy spectrum of windows of samples.

    Args:
        taper: [window]. hop: samples between windows. count: windows, all within `samples`. length: of the transform.
        emphasis: Kaldi's: take each window's mean away and emphasise high frequencies by this much.
    Returns: [count, length / 2 + 1] float64.
    """
    windows = np.lib.stride_tricks.sliding_window_view(samples, len(taper))[::hop][:count]
    found = np.empty((count, length // 2 + 1))
    for start in range(0, count, _FRAMES):
        part = windows[start : start + _FRAMES].astype(np.float64)
        if emphasis is not None:
            part -= part.mean(axis=1, keepdims=True)
            part[:, 1:] -= emphasis * part[:, :-1]
            part[:, 0] *= 1 - emphasis
        spectrum = np.fft.rfft(part * taper, length)
        found[start : start + _FRAMES] = spectrum.real**2 + spectrum.imag**2
    return found


def _triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[places, bands]: how much each place weighs in the band that rises from edge b to b + 1 and falls to b + 2."""
    widths = np.diff(edges)
    slopes = edges[None] - places[:, None]
    found: np.ndarray = np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return found


def _to_slaney(hertz: float) -> float:
    """Linear below 1 kHz, logarithmic above: 15 mel are 1 kHz, and 27 more are 6.4 kHz."""
    return 3.0 * hertz / 200.0 if hertz < 1000.0 else float(15.0 + np.log(hertz / 1000.0) * 27.0 / np.log(6.4))


def _from_slaney(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mels - 15.0)))


def _to_kaldi(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + hertz / 700.0)
