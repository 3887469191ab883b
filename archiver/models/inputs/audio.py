"""What a model directory says of sound: the features that its model computes on, and the tokens of a CTC model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archiver.errors import UnsupportedModelError
from archiver.models.config import quiet, reason
from archiver.models.files import read_json
from handlers.inputs.media.audio_features import KaldiMel, Waveform

_FILES = ("preprocessor_config.json", "processor_config.json")
WAVEFORM, KALDI = "Wav2Vec2FeatureExtractor", "ASTFeatureExtractor"


def convolutions_of(config: Mapping[str, Any]) -> list[list[int]]:
    """(kernel, stride) of the convolutions that make frames of samples; [] for a model over a spectrogram."""
    kernels, strides = config.get("conv_kernel") or (), config.get("conv_stride") or ()
    return [[int(kernel), int(stride)] for kernel, stride in zip(kernels, strides, strict=False)]


def read_features(path: Path, config: Mapping[str, Any]) -> Waveform | KaldiMel:
    """The features of a model directory, by its feature extractor's settings.

    Args:
        config: the model's, with transformers' defaults.
    Raises: UnsupportedModelError where they are missing, of another kind, or do not fit the model.
    """
    settings = _settings(path)
    kind = settings.get("feature_extractor_type") or WAVEFORM  # old files do not say it
    if kind not in (WAVEFORM, KALDI):
        raise UnsupportedModelError(
            f"its feature extractor is {kind}; allowed: {WAVEFORM} (samples) and {KALDI} (a spectrogram)"
        )
    rate = settings.get("sampling_rate", 16_000)
    if not isinstance(rate, int) or not 1_000 <= rate <= 192_000:
        raise UnsupportedModelError(f"its feature extractor's sampling_rate is {rate!r}; allowed: 1000 to 192000")
    stack = convolutions_of(config)
    if kind == WAVEFORM:
        if not stack:
            raise UnsupportedModelError(
                f"its feature extractor gives samples, and {config['model_type']} takes a spectrogram"
            )
        return Waveform(rate, bool(settings.get("do_normalize", True)), least_samples(stack))
    if stack:
        raise UnsupportedModelError(
            f"its feature extractor gives a spectrogram, and {config['model_type']} takes samples"
        )
    bins, frames = settings.get("num_mel_bins", 128), settings.get("max_length", 1024)
    wanted = (config.get("num_mel_bins"), config.get("max_length"))
    if (bins, frames) != wanted:
        raise UnsupportedModelError(
            f"its feature extractor makes {frames} frames of {bins} mel bins, the model takes {wanted[1]} of {wanted[0]}"
        )
    return KaldiMel(
        rate,
        bins,
        frames,
        float(settings.get("mean", KaldiMel.mean)),
        float(settings.get("std", KaldiMel.deviation)),
        bool(settings.get("do_normalize", True)),
    )


def least_samples(convolutions: list[list[int]]) -> int:
    """The samples that one frame is made of."""
    samples = 1
    for kernel, stride in reversed(convolutions):
        samples = (samples - 1) * stride + kernel
    return samples


def read_alphabet(path: Path, vocabulary: int) -> dict[str, Any]:
    """The tokens of a CTC model directory, as `handlers.tasks.speech.ctc.Alphabet` takes them.

    Args:
        vocabulary: how many scores the model gives a frame.
    Raises: UnsupportedModelError where there is no vocab.json that transformers' Wav2Vec2CTCTokenizer can read.
    """
    from transformers import Wav2Vec2CTCTokenizer

    if not (path / "vocab.json").is_file():
        raise UnsupportedModelError("it has no vocab.json: the tokens that a CTC model's scores stand for")
    try:
        with quiet():
            tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(path, local_files_only=True)
            tokens = tokenizer.convert_ids_to_tokens(list(range(vocabulary)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"its tokenizer cannot be read: {reason(error)}") from error
    if tokenizer.pad_token not in tokens:
        raise UnsupportedModelError(
            f"its padding token, a CTC model's blank, is {tokenizer.pad_token!r}; allowed: one of its {vocabulary} tokens"
        )
    return {
        "tokens": tokens,
        "blank": tokenizer.pad_token,
        "delimiter": tokenizer._word_delimiter_token,
        "space": tokenizer.replace_word_delimiter_char,
        "lower": bool(tokenizer.do_lower_case),
        "clean": bool(tokenizer.clean_up_tokenization_spaces),
    }


def _settings(path: Path) -> dict[str, Any]:
    """The feature extractor's, from either file that transformers writes them to."""
    for name in _FILES:
        if (path / name).is_file():
            problems: list[str] = []
            found = read_json(path / name, problems)
            if problems:
                raise UnsupportedModelError(problems[0])
            return dict(found.get("feature_extractor") or found)
    raise UnsupportedModelError(f"it has no {' or '.join(_FILES)}: how its features are made of sound is not known")
