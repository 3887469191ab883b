"""Tiny encoder-decoders of four families, made from a config and a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from archiver.models.config import quiet

VOCABULARY = 96
_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


def model_of(family: str, seed: int = 0, **changes: Any) -> Any:
    """transformers' …ForConditionalGeneration of a family, in evaluation mode, its logits far apart."""
    import transformers

    torch.manual_seed(seed)
    with quiet():
        if family == "t5":
            sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
            config: Any = transformers.T5Config(
                **{"vocab_size": VOCABULARY, "decoder_start_token_id": 0} | sizes | changes
            )
            model: Any = transformers.T5ForConditionalGeneration(config)
        elif family == "bart":
            config = transformers.BartConfig(**{"vocab_size": VOCABULARY, "forced_bos_token_id": 0} | _SIZES | changes)
            model = transformers.BartForConditionalGeneration(config)
        elif family == "mbart":
            config = transformers.MBartConfig(
                **{"vocab_size": VOCABULARY, "decoder_start_token_id": 2} | _SIZES | changes
            )
            model = transformers.MBartForConditionalGeneration(config)
        else:
            tokens = {"pad_token_id": 95, "decoder_start_token_id": 95, "eos_token_id": 0, "forced_eos_token_id": 0}
            config = transformers.MarianConfig(
                **{"vocab_size": VOCABULARY, "scale_embedding": True, "bad_words_ids": [[95]]}
                | tokens
                | _SIZES
                | changes
            )
            model = transformers.MarianMTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in name or "shared" in name else 0.25)
    return model.eval()


def build_tiny_seq2seq(path: Path, family: str = "t5", **changes: Any) -> None:
    """Save a random model with a byte-level BPE that takes every text and ends it with the end token."""
    from tiny_models import _bpe_tokenizer
    from tokenizers import processors

    tokenizer = _bpe_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    tokens = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "bos_token_id": 0}
    model = model_of(family, vocab_size=len(tokenizer), **tokens | changes)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
