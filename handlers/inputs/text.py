"""Text to token ids with `tokenizers` alone: transformers would cost the worker seconds and hundreds of megabytes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handlers.runtimes.base import require

# One request's few sentences are encoded faster on one thread, and the cores belong to the runtime.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class TextInput:
    """One text, or a pair of texts."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of one input, special tokens included, and which text of a pair each belongs to."""

    ids: list[int]
    type_ids: list[int]


class Encoder:
    """Encodes texts and pairs with a tokenizer.json, its path or its bytes.

    max_length: most tokens of one input, special tokens included; the longer of a pair is cut first (longest_first).
    requirement: the `tokenizers` that is needed, as in requirements.txt; UnsoundArchive where the host has none such.
    """

    def __init__(
        self, tokenizer_json: Path | bytes, *, max_length: int, pad_id: int, requirement: str = "tokenizers"
    ) -> None:
        kind = require("tokenizers", requirement).Tokenizer
        from_bytes = isinstance(tokenizer_json, bytes)
        self._tokenizer = kind.from_buffer(tokenizer_json) if from_bytes else kind.from_file(str(tokenizer_json))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        self.max_length = max_length
        self.pad_id = pad_id

    @property
    def tokenizer(self) -> Any:
        """The tokenizers.Tokenizer itself."""
        return self._tokenizer

    def encode(self, inputs: Sequence[TextInput], *, truncate: bool = True, special: bool = True) -> list[Encoded]:
        """[n] inputs to [n] encodings; truncate=False keeps every token, so that a caller can refuse the long ones.

        special: add the special tokens that belong around a text; a rendered chat has its own
        """
        texts = [item.text if item.text_pair is None else (item.text, item.text_pair) for item in inputs]
        if not truncate:
            self._tokenizer.no_truncation()
        try:
            return [
                Encoded(found.ids, found.type_ids)
                for found in self._tokenizer.encode_batch(texts, add_special_tokens=special)
            ]
        finally:
            if not truncate:
                self._tokenizer.enable_truncation(self.max_length, strategy="longest_first")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def pad(self, batch: Sequence[Encoded], length: int, rows: int | None = None) -> dict[str, np.ndarray]:
        """Arrays [rows, length] int64: input_ids, attention_mask (1 = real), token_type_ids.

        rows: at least len(batch), the default. A row beyond the batch has one real token, so that no softmax or mean
        over it divides by zero; its output is nobody's.
        """
        shape = (rows or len(batch), length)
        input_ids = np.full(shape, self.pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        token_type_ids = np.zeros(shape, np.int64)
        attention_mask[len(batch) :, 0] = 1
        for row, item in enumerate(batch):
            n = len(item.ids)
            input_ids[row, :n] = item.ids
            attention_mask[row, :n] = 1
            token_type_ids[row, :n] = item.type_ids
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
