"""A tiny model of Whisper's form that hears two seconds at once: tokens 0–99 are text, then come those for speech."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from archiver.models.config import quiet
from handlers.inputs.media.audio_features import WhisperMel

END, BEGIN, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, NO_TIMES = 100, 101, 102, 103, 104, 105, 106
FIRST_TIME = 107
SECONDS, RATE = 2.0, 16_000
VOCABULARY = FIRST_TIME + 101
FEATURES = WhisperMel(seconds=SECONDS)


def tiny_whisper(seed: int = 0) -> Any:
    """transformers' WhisperForConditionalGeneration, in evaluation mode, its logits far apart."""
    import transformers

    tokens = {"eos_token_id": END, "bos_token_id": END, "pad_token_id": END, "decoder_start_token_id": BEGIN}
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=100,
        max_target_positions=40,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **tokens,
    )
    torch.manual_seed(seed)
    with quiet():
        model: Any = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                parameter.normal_(0.0, 0.4 if "embed" in name else 0.2)
    found = {
        "suppress_tokens": [3, 4],
        "begin_suppress_tokens": [5, END],
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
        "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE},
        "no_timestamps_token_id": NO_TIMES,
        "max_initial_timestamp_index": 50,
        "prev_sot_token_id": 99,
        "alignment_heads": [[0, 1], [1, 0], [1, 3]],
        "max_length": 40,
        "return_timestamps": False,
    }
    for name, value in {**tokens, **found}.items():
        setattr(model.generation_config, name, value)
    return model.eval()


def noise(seconds: float, seed: int) -> np.ndarray:
    """A sound that is different in every part."""
    random = np.random.default_rng(seed)
    places = np.arange(round(seconds * RATE)) / RATE
    waves = [np.sin(2 * np.pi * hertz * places * (1 + 0.3 * np.sin(places))) for hertz in random.uniform(100, 3000, 4)]
    found: np.ndarray = (0.1 * sum(waves) + 0.02 * random.standard_normal(len(places))).astype(np.float32)
    return found


def wav(seconds: float, seed: int = 0) -> bytes:
    """The same as a file."""
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def tiny_tokenizer() -> Any:
    """A tokenizers.Tokenizer: 94 printable signs as text, a blank among them, and tokens for speech."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    signs = [chr(code) for code in range(32, 126)] + [f"<{index}>" for index in range(6)]
    tokenizer = Tokenizer(models.WordLevel({sign: index for index, sign in enumerate(signs)}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    speech = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    times = [f"<|{index * 0.02:.2f}|>" for index in range(101)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in [*speech, "<|notimestamps|>", *times]])
    return tokenizer


def build_tiny_whisper(path: Path) -> None:
    """Save the model directory."""
    model = tiny_whisper()
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(
        json.dumps(model.generation_config.to_dict() | {"_from_model_config": False})
    )
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "sampling_rate": RATE,
        "chunk_length": int(SECONDS),
        "hop_length": 160,
        "n_fft": 400,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
