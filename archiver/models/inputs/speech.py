"""What a model directory of Whisper's form says of sound and speech: its spectrogram, languages, tasks and times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archiver.errors import UnsupportedModelError
from archiver.models.files import read_json
from handlers.inputs.media.audio_features import WhisperMel


def whisper_features(path: Path) -> WhisperMel:
    """The spectrogram of a directory, by preprocessor_config.json.

    Raises: UnsupportedModelError where it is missing or of another kind.
    """
    problems: list[str] = []
    file = path / "preprocessor_config.json"
    settings = read_json(file, problems) if file.is_file() else {}
    kind = settings.get("feature_extractor_type")
    if kind != "WhisperFeatureExtractor":
        problems.append(
            f"preprocessor_config.json: feature_extractor_type is {kind!r}; allowed: WhisperFeatureExtractor"
        )
    if settings.get("dither"):
        problems.append(f"preprocessor_config.json: dither is {settings['dither']}, which would make answers random")
    if problems:
        raise UnsupportedModelError(f"model {path.absolute().name!r}: its features of sound are not known:", problems)
    usual = WhisperMel()
    return WhisperMel(
        settings.get("sampling_rate", usual.rate),
        settings.get("feature_size", usual.bins),
        settings.get("n_fft", usual.window),
        settings.get("hop_length", usual.hop),
        float(settings.get("chunk_length", usual.seconds)),
    )


def speech_tokens(config: Any) -> dict[str, Any]:
    """A model's tokens for languages, tasks and times, by its generation settings.

    Args:
        config: transformers' GenerationConfig.
    Returns: languages {code: token}, names {English name: code}, tasks {name: token}, no_times, first_time, latest,
        previous (before a prompt; None: it takes none) as JSON.
    Raises: UnsupportedModelError where they are not there.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    no_times = getattr(config, "no_timestamps_token_id", None)
    if no_times is None:
        raise UnsupportedModelError(
            "generation_config.json has no no_timestamps_token_id: take the one that was published with the model"
        )
    many = getattr(config, "is_multilingual", False)
    languages = {name.strip("<|>"): token for name, token in (getattr(config, "lang_to_id", None) or {}).items()}
    tasks = dict(getattr(config, "task_to_id", None) or {})
    if many and not (languages and {"transcribe", "translate"} <= set(tasks)):
        raise UnsupportedModelError(
            "generation_config.json says is_multilingual and has no lang_to_id or task_to_id: take the one that was "
            "published with the model"
        )
    return {
        "languages": languages if many else {},
        "names": {name: code for name, code in TO_LANGUAGE_CODE.items() if many and code in languages},
        "tasks": tasks if many else {},
        "no_times": no_times,
        "first_time": no_times + 1,
        "latest": getattr(config, "max_initial_timestamp_index", None),
        "previous": getattr(config, "prev_sot_token_id", None),
    }
