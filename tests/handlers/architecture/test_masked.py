"""Masked language models asked for some places: what the whole model gives there, of any family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from any_models import tiny

from handlers.architecture.outputs.masked import MaskedModel

DEBERTA = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "albert": {},
    "electra": {},
    "mpnet": {},
    "deberta-v2": DEBERTA | {"type_vocab_size": 0},
    "modernbert": {"local_attention": 8},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "esm": {"mask_token_id": 4},
}
PLACES = torch.tensor([[1, 7], [3, 0], [2, 2]])


@pytest.mark.parametrize("family", FAMILIES)
def test_asked_places_equal_the_whole_models(family: str) -> None:
    model = tiny(family, "AutoModelForMaskedLM", **FAMILIES[family])
    ids = torch.randint(5, 100, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [0] * 5])
    module = MaskedModel(model)
    with torch.inference_mode():
        whole = model(input_ids=ids, attention_mask=mask).logits
        found = module(ids, mask, PLACES, torch.zeros_like(ids))
        again = model(input_ids=ids, attention_mask=mask).logits
    assert found.shape == (3, 2, whole.shape[-1])
    torch.testing.assert_close(found, torch.stack([whole[row, places] for row, places in enumerate(PLACES)]))
    torch.testing.assert_close(again, whole)  # the model itself stays as it was


def test_a_model_without_head_is_none() -> None:
    with pytest.raises(ValueError, match="BertModel has no base model, or no head behind it"):
        MaskedModel(tiny("bert", "AutoModel"))
