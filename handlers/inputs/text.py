"""Texts and pairs of texts; to token ids with `tokenizers` alone: transformers would cost the worker seconds and hundreds
of megabytes."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.base import Input, Value
from handlers.inputs.checks import MAX_CHARACTERS, Parameter, checked_text, is_bool, kind_of, quoted, text_of
from handlers.requirements import require, required

# One request's few sentences are encoded faster on one thread, and the cores belong to the runtime.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class TextInput:
    """One text, or a pair of texts; or token ids, which are taken as they are."""

    text: str
    text_pair: str | None = None
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token ids of one input, special tokens included, and which text of a pair each belongs to."""

    ids: list[int]
    type_ids: list[int]


class Encoder:
    """A tokenizer.json at work: texts and pairs to token ids, and those to arrays.

    Args:
        tokenizer_json: its path or its bytes.
        max_length: most tokens of one input, special tokens included.
        pad_id: the token that fills a row.
        requirement: the `tokenizers` that is needed, as in requirements.txt.
        cut: what of a pair is cut at max_length: "longest_first", or "only_first" where the second text is never cut (a
            pair that this does not shorten enough is then an error of the tokenizer's).
        cuts: whether texts are cut at all; False where `encode` is only asked not to, and one tokenizer is enough.
    Raises: UnsoundArchive where the host has no such `tokenizers`.
    """

    def __init__(
        self,
        tokenizer_json: Path | bytes,
        *,
        max_length: int,
        pad_id: int,
        requirement: str = "tokenizers",
        cut: str = "longest_first",
        cuts: bool = True,
    ) -> None:
        kind: Any = require("tokenizers", requirement).Tokenizer
        from_bytes = isinstance(tokenizer_json, bytes)
        self._tokenizer: Any = kind.from_buffer(tokenizer_json) if from_bytes else kind.from_file(str(tokenizer_json))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Another one that does not cut, where the first does: several threads encode at once, and a tokenizer must not be
        # set otherwise while another thread is within it.
        self._whole: Any = None if cuts else self._tokenizer
        self._making = threading.Lock()
        if cuts:
            self._tokenizer.enable_truncation(max_length, strategy=cut)
        self.max_length = max_length
        self.cut = cut
        self.pad_id = pad_id

    @classmethod
    def open(
        cls, folder: Path, serving: Mapping[str, Any], cut: str = "longest_first", cuts: bool = True
    ) -> "Encoder":  # fmt: skip
        """That of an extracted archive: its tokenizer.json, and max_length and pad_id as serving.json has them."""
        return cls(
            folder / "tokenizer.json",
            max_length=serving["max_length"],
            pad_id=serving["pad_id"],
            requirement=required(folder, "tokenizers"),
            cut=cut,
            cuts=cuts,
        )

    @property
    def tokenizer(self) -> Any:
        """The tokenizers.Tokenizer itself."""
        return self._tokenizer

    def encode(self, inputs: Sequence[TextInput], *, truncate: bool = True, special: bool = True) -> list[Encoded]:
        """Texts to token ids.

        Args:
            inputs: [n] texts or pairs. truncate: cut at max_length; False keeps every token, so that a caller can refuse.
            special: add the special tokens that belong around a text; a rendered chat has its own.
        Returns: [n] encodings.
        """
        texts = [item.text if item.text_pair is None else (item.text, item.text_pair) for item in inputs]
        tokenizer = self._tokenizer if truncate else self._without_cuts()
        # Without offsets, which nothing here asks for: a fifth less time a text.
        encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
        return [Encoded(found.ids, found.type_ids) for found in encode(texts, add_special_tokens=special)]

    def _without_cuts(self) -> Any:
        with self._making:
            if self._whole is None:
                whole: Any = type(self._tokenizer).from_str(self._tokenizer.to_str())
                whole.no_truncation()
                self._whole = whole
            return self._whole

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def pad(self, batch: Sequence[Encoded], length: int, rows: int | None = None) -> dict[str, np.ndarray]:
        """Encodings as arrays.

        Args:
            batch: [n] encodings of at most `length` tokens. rows: at least n, the default. A row beyond n has one real
                token, so that no softmax or mean over it divides by zero.
        Returns: input_ids, attention_mask (1 = real) and token_type_ids, each [rows, length] int64.
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


class Texts(Input[Value, Encoded]):
    """What the model sees as texts or pairs of texts, whatever a request's input is; an item's size is its tokens.

    cut: what of a pair is cut, see Encoder.
    """

    cut: ClassVar[str] = "longest_first"
    parameters: ClassVar[dict[str, Parameter]] = {"truncation": Parameter(is_bool, "true or false")}

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> Self:
        """The texts of an extracted archive, see `Encoder.open`."""
        return cls(Encoder.open(folder, serving, cls.cut))

    def encoded(
        self, texts: Sequence[TextInput], parameters: Mapping[str, Any], names: Sequence[str] = ()
    ) -> list[Encoded]:
        """Token ids of [n] texts of one request.

        Args:
            parameters: the request's. names: what messages call each; default: its place among the inputs.
        Raises: BadRequest where one is longer than max_length and may not be cut, naming it.
        """
        truncate = parameters.get("truncation", True)
        found = self.encoder.encode(texts, truncate=truncate)
        for index, text in enumerate(texts):
            if text.ids:
                ids = list(text.ids[: self.encoder.max_length if truncate else None])
                found[index] = Encoded(ids, [0] * len(ids))
        for index, item in enumerate(found):
            if len(item.ids) > self.encoder.max_length:
                where = names[index] if names else f"inputs[{index}]"
                raise BadRequest(
                    f"{where} has {len(item.ids)} tokens; at most {self.encoder.max_length} are allowed "
                    "with 'truncation': false"
                )
        return found

    def size(self, item: Encoded) -> int:
        return len(item.ids)

    def collate(self, items: Sequence[Encoded], size: int, rows: int) -> dict[str, np.ndarray]:
        return self.encoder.pad(items, size, rows)


class Text(Texts[TextInput]):
    """Texts and pairs as a kind of input."""

    allowed: ClassVar[str] = (
        'allowed: {"inputs": "text"}, {"inputs": ["text", …]}, {"inputs": {"text": …, "text_pair": …}}, or plain text'
    )

    def decode(self, value: Any, where: str) -> TextInput:
        if isinstance(value, (str, bytes)):
            return TextInput(text_of(value, where))
        if not isinstance(value, dict):
            raise BadRequest(
                f"{where} is {kind_of(value)}; a text or an object with 'text' and 'text_pair' is expected"
            )
        if set(value) == {"token_ids"}:
            return TextInput("", ids=self._token_ids(value["token_ids"], where))
        unknown = sorted(set(value) - {"text", "text_pair"})
        if unknown:
            raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: 'text', 'text_pair'")
        if "text" not in value:
            raise BadRequest(f"{where} has no 'text'")
        text, pair = checked_text(value["text"], f"{where}.text"), value.get("text_pair")
        return TextInput(text, None if pair is None else checked_text(pair, f"{where}.text_pair"))

    def _token_ids(self, value: Any, where: str) -> tuple[int, ...]:
        most = self.encoder.tokenizer.get_vocab_size()
        if not isinstance(value, list) or not value or not all(type(one) is int and 0 <= one < most for one in value):
            raise BadRequest(f"{where} is no list of this model's token ids: whole numbers from 0 to {most - 1}")
        if len(value) > MAX_CHARACTERS:
            raise BadRequest(f"{where} has {len(value)} token ids; at most {MAX_CHARACTERS} are allowed")
        return tuple(value)

    def encode(self, values: Sequence[TextInput], parameters: Mapping[str, Any]) -> list[Encoded]:
        return self.encoded(values, parameters)

    def to_stored(self, value: TextInput) -> Any:
        return value.text if value.text_pair is None else {"text": value.text, "text_pair": value.text_pair}

    def from_stored(self, stored: Any) -> TextInput:
        return TextInput(stored) if isinstance(stored, str) else TextInput(stored["text"], stored.get("text_pair"))
