"""How a model writes by itself: generation_config.json, else config.json, as the rules that the serving side follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archiver.errors import UnsupportedModelError

MOST_TARGET = 1024  # tokens of an answer, where the decoder has no table of positions
DEFAULT_TOKENS = 128  # of an answer, where the model's settings do not say
# What would change the text and is not done here: refused, never ignored.
_NOT_DONE = {
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "constraints": None,
    "force_words_ids": None,
}


def generation_rules(model: Any, most: int) -> dict[str, Any]:
    """The fields of handlers.generation.seq2seq.rules.Rules, as JSON values.

    Args:
        model: transformers' …ForConditionalGeneration. most: tokens that an answer can have.
    Raises: UnsupportedModelError that lists settings which are not followed.
    """
    config = model.generation_config
    odd = [
        f"{name} is {found!r}"
        for name, usual in _NOT_DONE.items()
        if (found := getattr(config, name, None)) not in (usual, None)
    ]
    if odd:
        raise UnsupportedModelError(
            "generation_config.json asks for what is not done here: remove it, or set it to the usual value:", odd
        )
    start = next((found for found in (config.decoder_start_token_id, config.bos_token_id) if found is not None), None)
    if start is None:
        raise UnsupportedModelError(
            "generation_config.json has no decoder_start_token_id: add the token that a text begins with"
        )
    begins = _ids(start)
    longest = config.max_new_tokens or (config.max_length - len(begins) if (config.max_length or 0) > 20 else 0)
    least = max(config.min_new_tokens or 0, (config.min_length or 0) - len(begins))
    count = min(longest or DEFAULT_TOKENS, most)
    return {
        "start": begins,
        "end_ids": _ids(config.eos_token_id),
        "max_new_tokens": count,
        "min_new_tokens": min(max(least, 0), count),
        "num_beams": config.num_beams or 1,
        "length_penalty": 1.0 if config.length_penalty is None else config.length_penalty,
        "early_stopping": config.early_stopping or False,
        "repetition_penalty": config.repetition_penalty or 1.0,
        "no_repeat_ngram_size": config.no_repeat_ngram_size or 0,
        "encoder_no_repeat_ngram_size": config.encoder_no_repeat_ngram_size or 0,
        "bad_words": [words for words in config.bad_words_ids or [] if words != _ids(config.eos_token_id)],
        "suppress": _ids(getattr(config, "suppress_tokens", None)),
        "suppress_first": _ids(getattr(config, "begin_suppress_tokens", None)),
        "first": config.forced_bos_token_id,
        "last": _ids(config.forced_eos_token_id),
        "renormalize": bool(config.renormalize_logits),
        "do_sample": bool(config.do_sample),
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "top_k": config.top_k or 0,
        "top_p": 1.0 if config.top_p is None else config.top_p,
    }


def target_places(model: Any) -> int:
    """Tokens that the decoder can write: by its table of positions, where it has one."""
    import torch

    tables = [
        module.num_embeddings
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, torch.nn.Embedding) and "position" in name.rpartition(".")[2]
    ]
    stated = getattr(model.config, "max_target_positions", None) or getattr(
        model.config, "max_position_embeddings", None
    )
    bounds = [value for value in (*tables, stated) if isinstance(value, int) and value > 1]
    return min([MOST_TARGET, *bounds])


def _ids(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else [int(token) for token in value]
