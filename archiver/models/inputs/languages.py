"""The tokens by which a model of many languages is told which one it reads or writes."""

from __future__ import annotations

import json
import re

_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]+|__[a-z]{2,3}__")  # eng_Latn (NLLB), en_XX (mBART), __en__ (M2M100)


def language_tokens(tokenizer_json: bytes) -> dict[str, int]:
    """{language: token id} of a tokenizer.json: special tokens that are written as languages; {} for other models."""
    added = json.loads(tokenizer_json).get("added_tokens") or []
    return {
        token["content"].strip("_"): token["id"]
        for token in added
        if token.get("special") and _CODE.fullmatch(token["content"])
    }
