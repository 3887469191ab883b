"""Texts with masked words: token ids and the places whose words are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.base import Input
from handlers.inputs.checks import Parameter, text_of
from handlers.inputs.text import Encoded, Text, TextInput

# Of one run's row: 1 or as many. A row's logits are as many numbers as the vocabulary has words for each place, and all
# rows of a run have as many places: a text with more masks is run again for the others.
PLACES = 4
TOP_K = 5


@dataclass(frozen=True)
class Masked:
    """A text's tokens, and up to PLACES of those of them that are asked for.

    most: how many words for each place. targets: ids of the words that are asked for; None: all.
    """

    encoded: Encoded
    places: tuple[int, ...]
    most: int = TOP_K
    targets: tuple[int, ...] | None = None


def width_of(items: Sequence[Masked]) -> int:
    """How many places every row of a run of these items has: 1 or PLACES, so that runtimes meet few shapes."""
    return PLACES if any(len(item.places) > 1 for item in items) else 1


class MaskedText(Input[str, Masked]):
    """A text that holds the mask token, once or more; a size is a number of tokens.

    Args:
        text: how texts are read. mask_token: as a request writes it; its id is the tokenizer's.
    """

    allowed: ClassVar[str] = (
        'allowed: {"inputs": "text with a mask token"}, {"inputs": ["text", …]}, or plain text with one'
    )
    parameters: ClassVar[dict[str, Parameter]] = Text.parameters

    def __init__(self, text: Text, mask_token: str) -> None:
        self.text = text
        self.mask_token = mask_token
        self.mask_id: int = text.encoder.tokenizer.token_to_id(mask_token)

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> Self:
        """The texts of an extracted archive, as `Text.open` has them; serving.json names the mask token."""
        return cls(Text.open(folder, serving), serving["mask_token"])

    def decode(self, value: Any, where: str) -> str:
        return text_of(value, where)

    def encode(self, values: Sequence[str], parameters: Mapping[str, Any]) -> list[Masked]:
        return [item for items in self.encode_each(values, parameters) for item in items]

    def encode_each(self, values: Sequence[str], parameters: Mapping[str, Any]) -> list[list[Masked]]:
        """The items of each of [n] texts: the same tokens, PLACES of its masks each.

        Raises: BadRequest for a text without a mask token among its first max_length tokens, naming its index.
        """
        found = self.text.encode([TextInput(value) for value in values], parameters)
        return [
            [Masked(encoded, places) for places in self._places(encoded, index, len(values))]
            for index, encoded in enumerate(found)
        ]

    def _places(self, encoded: Encoded, index: int, count: int) -> Iterator[tuple[int, ...]]:
        places = tuple(place for place, token in enumerate(encoded.ids) if token == self.mask_id)
        if not places:
            where = "inputs" if count == 1 else f"inputs[{index}]"
            raise BadRequest(
                f"{where} has no mask token among its first {self.text.encoder.max_length} tokens; write "
                f"{self.mask_token} where a word is to be found"
            )
        for start in range(0, len(places), PLACES):
            yield places[start : start + PLACES]

    def size(self, item: Masked) -> int:
        return len(item.encoded.ids)

    def collate(self, items: Sequence[Masked], size: int, rows: int) -> dict[str, np.ndarray]:
        """With `places` [rows, masks] int64; a row that asks for fewer than others asks for its own again."""
        arrays = self.text.collate([item.encoded for item in items], size, rows)
        places = np.zeros((rows, width_of(items)), np.int64)
        for row, item in enumerate(items):
            places[row] = np.resize(item.places, places.shape[1])
        return arrays | {"places": places}

    def to_stored(self, value: str) -> Any:
        return value

    def from_stored(self, stored: Any) -> str:
        return str(stored)
