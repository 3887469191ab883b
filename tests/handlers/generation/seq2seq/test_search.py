"""Our searches against transformers' generate, token by token, over tiny models of the families."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_seq2seq import VOCABULARY, model_of

from handlers.generation.seq2seq.rules import Rules
from handlers.generation.seq2seq.search import search_for
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

FAMILIES = ("t5", "bart", "mbart", "marian")
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "long enough": {"min_new_tokens": 9},
    "beams": {"num_beams": 3},
    "beams, long": {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    "beams, short": {"num_beams": 2, "length_penalty": -1.0, "early_stopping": True},
    "beams, never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.6, "min_new_tokens": 4},
    "beams, penalised": {"num_beams": 3, "repetition_penalty": 1.3, "encoder_no_repeat_ngram_size": 2},
    "suppressed": {"num_beams": 2, "suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8, 9, 10, 11]},
}


def sources(count: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, VOCABULARY - 2, (count, 12), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, 12 - row :] = 0
    return ids.masked_fill(mask == 0, pad), mask


def rules_of(model: Any, settings: dict[str, Any], tokens: int) -> Rules:
    given, config = dict(settings), model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return Rules(
        (config.decoder_start_token_id,),
        tuple(ends),
        tokens,
        suppress=tuple(given.pop("suppress_tokens", ())),
        suppress_first=tuple(given.pop("begin_suppress_tokens", ())),
        first=config.forced_bos_token_id,
        last=() if config.forced_eos_token_id is None else (config.forced_eos_token_id,),
        bad_words=tuple(map(tuple, config.bad_words_ids or ())),
        **given,
    )


def written(session: Any, arrays: dict[str, np.ndarray], rules: Rules) -> list[int]:
    """One text alone, straight on a session."""
    decoder = session.read(arrays)
    search = search_for(rules, arrays["input_ids"][0][arrays["attention_mask"][0] > 0].tolist())
    ids, parents, found = np.array([rules.start]), [0], list[int]()
    while True:
        step = search.advance(decoder.step(ids, parents, [0] * len(parents)))
        found += step.told
        if not step.rows:
            return found
        ids, parents = np.array([[token] for _, token in step.rows]), [row for row, _ in step.rows]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(family: str, name: str) -> None:
    model, settings = model_of(family), SETTINGS[name]
    ids, mask = sources(4, model.config.pad_token_id)
    with torch.inference_mode():
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, **settings)
    rules = rules_of(model, settings, 14)
    session = TorchSeq2Seq.of_model(model)
    for row in range(4):
        arrays = {"input_ids": ids[row : row + 1].numpy(), "attention_mask": mask[row : row + 1].numpy()}
        theirs = expected[row].tolist()[1:]
        ends = [place for place, token in enumerate(theirs) if token in rules.end_ids]
        assert written(session, arrays, rules) == theirs[: ends[0] if ends else None]
