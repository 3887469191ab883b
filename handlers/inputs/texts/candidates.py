"""Texts to classify by labels that the request brings: pairs of a text and what a label says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_text, is_bool, kind_of, quoted, text_of
from handlers.inputs.text import Encoded, TextInput, Texts

TEMPLATE = "This example is {}."


_OWN = ("candidate_labels", "hypothesis_template")  # parameters that an input may bring itself


@dataclass(frozen=True)
class Candidates:
    """texts: to classify, each by itself. form: "labels" where a request has `inputs`; else it has `sequences`, as
    transformers' pipeline calls them, and the answer is the pipeline's: "sequence" for one text, "sequences" for a list.
    labels, template: of an input that brings its own, as examples do; else they are the request's parameters."""

    texts: tuple[str, ...]
    form: str = "labels"
    labels: tuple[str, ...] = ()
    template: str = ""

    def labels_with(self, parameters: Mapping[str, Any]) -> list[str]:
        """The labels that its texts are classified by; none where neither it nor the parameters have any."""
        return list(self.labels) or labels_of(parameters.get("candidate_labels", []))


def is_labels(value: Any) -> bool:
    """Whether a value is a list of texts, none empty, or one text with commas between labels."""
    labels = labels_of(value) if isinstance(value, str) else value
    return isinstance(labels, list) and bool(labels) and all(map(_is_text, labels))


def is_template(value: Any) -> bool:
    """Whether a value is a text with one place {} for the label and no other brace."""
    return _is_text(value) and bool(value.count("{}") == value.count("{") == value.count("}") == 1)


def _is_text(value: Any) -> bool:
    """Whether a value is a text that can be answered."""
    try:
        return checked_text(value, "label") is value
    except BadRequest:
        return False


def labels_of(value: Any) -> list[str]:
    """The labels of a list, or of a text with commas between them."""
    if isinstance(value, str):
        return [label.strip() for label in value.split(",") if label.strip()]
    return list(value)


class CandidateText(Texts[Candidates]):
    """A text, whose labels are a parameter; the model sees the text with each label's hypothesis as a pair."""

    cut: ClassVar[str] = "only_first"  # the text, never the hypothesis
    allowed: ClassVar[str] = (
        'allowed: {"inputs": "text" or ["text", …], "parameters": {"candidate_labels": ["label", …]}}, '
        '{"inputs": {"text": …, "candidate_labels": […]}}, or '
        '{"sequences": …, "candidate_labels": […]} for an answer in the form of transformers\' pipeline'
    )
    fields: ClassVar[tuple[str, ...]] = ("sequences",)
    parameters: ClassVar[dict[str, Parameter]] = {
        "candidate_labels": Parameter(is_labels, "a list of labels, none empty, or one text with commas between them"),
        "hypothesis_template": Parameter(is_template, "a text with one {} where the label goes, and no other brace"),
        "multi_label": Parameter(is_bool, "true (each label by itself) or false (labels against each other)"),
    }

    def decode(self, value: Any, where: str) -> Candidates:
        if isinstance(value, (str, bytes)):
            return Candidates((text_of(value, where),))
        if isinstance(value, dict) and "text" in value:
            return self._with_labels(value, where)
        if not isinstance(value, dict) or set(value) != {"sequences"}:
            found = (
                f"an object with {quoted(sorted(value)) or 'nothing'}" if isinstance(value, dict) else kind_of(value)
            )
            raise BadRequest(f"{where} is {found}; a text is expected; {self.allowed}")
        texts = value["sequences"]
        if not isinstance(texts, list):
            return Candidates((checked_text(texts, "sequences"),), "sequence")
        if not texts:
            raise BadRequest("'sequences' is an empty list; at least one text is expected")
        return Candidates(
            tuple(checked_text(text, f"sequences[{index}]") for index, text in enumerate(texts)), "sequences"
        )

    def _with_labels(self, value: Mapping[str, Any], where: str) -> Candidates:
        """A text that brings its own labels, and template."""
        unknown = sorted(set(value) - {"text", *_OWN})
        if unknown:
            raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: {quoted(['text', *_OWN])}")
        given = {key: found for key, found in value.items() if key in _OWN}
        for key, found in given.items():
            if not self.parameters[key].check(found):
                raise BadRequest(f"{where}.{key} is {kind_of(found)}; allowed: {self.parameters[key].allowed}")
        return Candidates(
            (checked_text(value["text"], f"{where}.text"),),
            labels=tuple(labels_of(given.get("candidate_labels", []))),
            template=given.get("hypothesis_template", ""),
        )

    def encode(self, values: Sequence[Candidates], parameters: Mapping[str, Any]) -> list[Encoded]:
        return [item for items in self.encode_each(values, parameters) for item in items]

    def encode_each(self, values: Sequence[Candidates], parameters: Mapping[str, Any]) -> list[list[Encoded]]:
        """The items of each of [n] inputs: every text of it with every label, texts in the outer order.

        Raises: BadRequest without labels, and where a hypothesis leaves no room for its text.
        """
        found = []
        for value in values:
            labels = value.labels_with(parameters)
            if not labels:
                raise BadRequest(f"the parameter 'candidate_labels' is missing; {self.allowed}")
            template = value.template or parameters.get("hypothesis_template", TEMPLATE)
            pairs = [TextInput(text, template.replace("{}", label)) for text in value.texts for label in labels]
            found.append(self._pairs(pairs))
        return found

    def _pairs(self, pairs: Sequence[TextInput]) -> list[Encoded]:
        try:
            return self.encoder.encode(pairs)
        except Exception as error:  # the tokenizer's own for a pair of which cutting the text is not enough
            if "too short" not in str(error):
                raise
            raise BadRequest(
                f"a label's hypothesis leaves no room for the text among {self.encoder.max_length} tokens; send shorter "
                "labels or a shorter 'hypothesis_template'"
            ) from error

    def to_stored(self, value: Candidates) -> Any:
        own = {"hypothesis_template": value.template} if value.template else {}
        return {"text": value.texts[0], "candidate_labels": list(value.labels), **own}

    def from_stored(self, stored: Any) -> Candidates:
        return self._with_labels(stored, "example")
