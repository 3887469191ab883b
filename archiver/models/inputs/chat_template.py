"""The chat template of a model directory, and the special tokens that it may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from archiver.errors import UnsupportedModelError
from archiver.models.files import read_json
from handlers.generation.chat import ChatTemplate

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_MOST = 200_000  # characters; the longest known templates have some 20,000


def read_chat_template(folder: Path) -> dict[str, Any] | None:
    """{"template": Jinja text, "tokens": {"bos_token": …}}; None where the model has none.

    chat_template.jinja wins over tokenizer_config.json; of several named templates "default" is taken.
    """
    problems: list[str] = []
    config = (
        read_json(folder / "tokenizer_config.json", problems) if (folder / "tokenizer_config.json").is_file() else {}
    )
    template: Any = config.get("chat_template")
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            template = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UnsupportedModelError(f"{folder.name}: {file.name} is not UTF-8: {error.reason}") from error
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > _MOST:
        raise UnsupportedModelError(f"{folder.name}: its chat template is no text of at most {_MOST} characters")
    tokens = {name: text for name in _TOKENS if (text := _text(config.get(name)))}
    try:
        ChatTemplate(template, tokens)
    except jinja2.TemplateError as error:
        raise UnsupportedModelError(
            f"{folder.name}: its chat template is no Jinja that can be read: {error}"
        ) from error
    return {"template": template, "tokens": tokens}


def _text(token: Any) -> str | None:
    """A special token as tokenizer_config.json writes it: a text, or an object with its content."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
