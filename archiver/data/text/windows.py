"""A language model's data: plain text as one stream, cut into windows of tokens without overlap."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from archiver.data.embedded import SOURCE, embedded_sentences
from archiver.data.files import BadRow, Columns
from archiver.data.hub import HUB_PREFIX, read_hub_rows
from archiver.errors import DataError

CONTEXT = 256  # tokens a window, where the recipe does not say
# The first so many may be measured; perplexity's third digit hardly moves with more. At least so many are.
VALIDATION_WINDOWS, LEAST_WINDOWS = 200, 20


def read_text(source: Path | str, column: str = "text") -> str:
    """The whole text of a .txt file, "embedded:cpython:train|validation", or a hub data set's `column`, row after row.

    raises DataError when it cannot be read, is not UTF-8, or is empty
    """
    if isinstance(source, Path):
        text = _file(source)
    elif source.startswith(HUB_PREFIX):
        parts = []
        for row in read_hub_rows(source, Columns({"text": column}, ("text",))):
            if isinstance(row, BadRow):
                raise DataError(f"{source}: row {row.line} {row.problem}")
            if not isinstance(row.values["text"], str):
                raise DataError(f"{source}: row {row.line}: the column {column!r} must hold text")
            parts.append(row.values["text"].removesuffix("\n"))
        text = "\n".join(parts)
    else:
        base, _, split = source.rpartition(":")
        if base != SOURCE:
            raise DataError(f"{source} is not embedded; allowed: {SOURCE}:train, {SOURCE}:validation")
        text = "\n".join(embedded_sentences(split))
    if not text.strip():
        raise DataError(f"{source.name if isinstance(source, Path) else source} is empty: it needs text")
    return text


def _file(path: Path) -> str:
    if path.suffix.lower() != ".txt":
        raise DataError(f"{path.name} has the suffix {path.suffix!r}; a language model's data is plain text (.txt)")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: byte {error.start} is not UTF-8: save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}; name a file that exists") from error


@lru_cache(maxsize=6)
def cut_windows(text: str, tokenizer_json: bytes, context: int) -> np.ndarray:
    """[windows, context] int64: the text's tokens, no special ones among them; what fills no window is left out."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    count = len(ids) // context
    windows = ids[: count * context].reshape(count, context)
    windows.flags.writeable = False
    return windows


def windows_of(text: str, tokenizer_json: bytes, context: int) -> np.ndarray:
    """The same; DataError when the text fills not even one window."""
    windows = cut_windows(text, tokenizer_json, context)
    if not len(windows):
        raise DataError(
            f"the text is shorter than one window of data.context {context} tokens: give more text, or a lower context"
        )
    return windows
