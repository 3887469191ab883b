"""One text against several others: a query and the texts to rank, a sentence and those that it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_text, is_bool, kind_of, quoted
from handlers.inputs.text import Encoded, TextInput, Texts


@dataclass(frozen=True)
class Against:
    """one: the text. others: [n] that it stands against, at least one."""

    one: str
    others: tuple[str, ...]


class TextAgainstOthers(Texts[Against]):
    """An object of a text and a list of texts, whose keys a subclass names in `fields`.

    What the model sees of one is the task's: pairs, or each text by itself.
    """

    def decode(self, value: Any, where: str) -> Against:
        one, others = self.fields
        if not isinstance(value, dict):
            found = "plain text" if isinstance(value, bytes) else kind_of(value)
            raise BadRequest(f"{where} is {found}; an object with '{one}' and '{others}' is expected; {self.allowed}")
        unknown = sorted(set(value) - {one, others})
        if unknown:
            raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: '{one}', '{others}'")
        missing = [name for name in (one, others) if name not in value]
        if missing:
            raise BadRequest(f"{where} has no {quoted(missing)}; {self.allowed}")
        texts = value[others]
        if not isinstance(texts, list):
            raise BadRequest(f"{where}.{others} is {kind_of(texts)}; a list of texts is expected")
        if not texts:
            raise BadRequest(f"{where}.{others} is an empty list; at least one text is expected")
        return Against(
            checked_text(value[one], f"{where}.{one}"),
            tuple(checked_text(text, f"{where}.{others}[{index}]") for index, text in enumerate(texts)),
        )

    def to_stored(self, value: Against) -> Any:
        return dict(zip(self.fields, (value.one, list(value.others)), strict=True))

    def from_stored(self, stored: Any) -> Against:
        one, others = self.fields
        return Against(stored[one], tuple(stored[others]))


class Query(TextAgainstOthers):
    """A query and the texts to rank; the model sees each text with the query as a pair, the query first."""

    fields: ClassVar[tuple[str, ...]] = ("query", "texts")
    allowed: ClassVar[str] = 'allowed: {"query": "text", "texts": ["text", …]}, also under "inputs"'
    # `truncate` is what text-embeddings-inference calls it.
    parameters: ClassVar[dict[str, Parameter]] = Texts.parameters | {"truncate": Parameter(is_bool, "true or false")}

    def encode(self, values: Sequence[Against], parameters: Mapping[str, Any]) -> list[Encoded]:
        pairs = [(value.one, text, place) for value in values for place, text in enumerate(value.others)]
        given = {"truncation": parameters["truncate"]} if "truncate" in parameters else parameters
        names = [f"texts[{place}] with the query" for _, _, place in pairs]
        return self.encoded([TextInput(one, text) for one, text, _ in pairs], given, names)


class SourceSentence(TextAgainstOthers):
    """A sentence and others; the model sees each by itself, the one before the others."""

    fields: ClassVar[tuple[str, ...]] = ("source_sentence", "sentences")
    allowed: ClassVar[str] = (
        'allowed: {"inputs": {"source_sentence": "text", "sentences": ["text", …]}}, also without "inputs"'
    )

    def encode(self, values: Sequence[Against], parameters: Mapping[str, Any]) -> list[Encoded]:
        texts = [TextInput(text) for value in values for text in (value.one, *value.others)]
        places = [place for value in values for place in range(1 + len(value.others))]
        names = [f"sentences[{place - 1}]" if place else "source_sentence" for place in places]
        return self.encoded(texts, parameters, names)
