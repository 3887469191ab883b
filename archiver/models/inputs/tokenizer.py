"""What tokenizer.json says of the vocabulary, found without the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archiver.models.files import read_json


def read_vocabulary(path: Path, problems: list[str]) -> dict[str, int]:
    """{token: id} of tokenizer.json, vocabulary and added tokens."""
    file = path / "tokenizer.json"
    if not file.is_file():
        make = "from transformers import AutoTokenizer as T; T.from_pretrained(D).save_pretrained(D)"
        problems.append(f"it has no tokenizer.json; make one with: python -c \"D = 'DIR'; {make}\"")
        return {}
    content = read_json(file, problems)
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: [token, log probability] in the order of ids
        ids = {str(entry[0]): index for index, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    else:
        ids = {token: index for token, index in vocab.items() if type(index) is int} if isinstance(vocab, dict) else {}
    if content and not ids:
        problems.append("tokenizer.json has no vocabulary (model.vocab): save the tokenizer again")
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and type(token.get("id")) is int:
            ids[str(token.get("content"))] = token["id"]
    return ids


def tokenizer_settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what special_tokens_map.json says besides; {} where there is neither."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).is_file():
            found |= read_json(path / name, [])
    return found


def check_vocabulary(tokenizer: dict[str, int], rows: int, problems: list[str]) -> None:
    """Every id of the tokenizer must have its row of embeddings."""
    if tokenizer and max(tokenizer.values()) >= rows:
        token = max(tokenizer, key=lambda name: tokenizer[name])
        problems.append(
            f"tokenizer.json has the id {tokenizer[token]} ({token!r}), the model {rows} embeddings: they do not "
            "belong together; save the tokenizer that the model was trained with"
        )


def special_token(path: Path, key: str) -> str | None:
    """A special token as the tokenizer's files name it, None where they name none.

    Args:
        path: the model directory. key: "unk_token", "cls_token", …
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = path / name
        token = read_json(file, []).get(key) if file.is_file() else None
        if token is not None:
            return str(token["content"] if isinstance(token, dict) else token)
    return None
