"""Tiny models over sound with random weights, and sounds for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = ["<pad>", "<unk>", "|", "A", "B", "C", "D", "E", "F", "G", "H", "I"]
CONVOLUTIONS = ((10, 5), (3, 2), (2, 2))  # (kernel, stride)
LABELS = {0: "zero", 1: "one", 2: "two", 3: "three", 4: "four"}
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "id2label": LABELS,
    "conv_dim": (16, 16, 16), "conv_kernel": tuple(k for k, _ in CONVOLUTIONS),
    "conv_stride": tuple(s for _, s in CONVOLUTIONS), "num_feat_extract_layers": 3, "pad_token_id": 0,
    "classifier_proj_size": 16, "initializer_range": 0.3,
}  # fmt: skip
SPECTROGRAM: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_length": 64,
    "num_mel_bins": 32, "id2label": LABELS, "initializer_range": 0.3,
}  # fmt: skip

CTC, CLASSES = "AutoModelForCTC", "AutoModelForAudioClassification"


def tiny_audio_model(kind: str = "wav2vec2", auto_class: str = CTC, **config: Any) -> Any:
    """A model of that type in evaluation mode; the same arguments give the same weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = SPECTROGRAM if kind == "audio-spectrogram-transformer" else SIZES
    made = transformers.AutoConfig.for_model(kind, **(sizes | config))
    return getattr(transformers, auto_class).from_config(made, attn_implementation="eager").eval()


def build_audio_model(folder: Path, kind: str = "wav2vec2", auto_class: str = CTC, **config: Any) -> Path:
    """The model directory of a tiny model, with its vocabulary and its feature settings."""
    tiny_audio_model(kind, auto_class, **config).save_pretrained(folder)
    documents: dict[str, Any] = {
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "feature_size": 1,
            "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16_000,
        }
    }  # fmt: skip
    if kind == "audio-spectrogram-transformer":
        documents["preprocessor_config.json"] = {
            "feature_extractor_type": "ASTFeatureExtractor", "do_normalize": True, "max_length": 64,
            "num_mel_bins": 32, "sampling_rate": 16_000, "mean": -4.0, "std": 4.5,
        }  # fmt: skip
    if auto_class == CTC:
        documents["vocab.json"] = {token: place for place, token in enumerate(TOKENS)}
        documents["tokenizer_config.json"] = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "bos_token": None,
            "eos_token": None,
        }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    return folder


def sounds(*lengths: int) -> list[np.ndarray]:
    """[samples] float32 of each length: tones with noise."""
    random = np.random.default_rng(0)
    made = []
    for length in lengths:
        time = np.arange(length) / 16_000
        tone = np.sin(2 * np.pi * random.uniform(100, 3000) * time * (1 + time))
        made.append((0.3 * tone + 0.1 * random.standard_normal(length)).astype(np.float32))
    return made
