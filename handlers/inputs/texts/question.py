"""Questions on a context, read in windows that each hold the whole question and a part of the context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_text, is_positive_int, kind_of, quoted
from handlers.inputs.text import Encoder
from handlers.inputs.texts.windows import Window, Windowed, cut, is_count

STRIDE = 128  # tokens that neighbouring windows have in common, or half of a window: transformers 4's default


@dataclass(frozen=True)
class Question:
    """A question, and the text to find its answer in."""

    question: str
    context: str


class Questions(Windowed[Question]):
    """Questions with contexts.

    Args:
        null: the token that a model points to where the context holds no answer, or None.
    """

    allowed: ClassVar[str] = (
        'allowed: {"inputs": {"question": "text", "context": "text"}}, a list of such, or {"question": …, "context": …}'
    )
    fields: ClassVar[tuple[str, ...]] = ("question", "context")
    parameters: ClassVar[dict[str, Parameter]] = {
        "doc_stride": Parameter(is_count, "a whole number from 0: the tokens that neighbouring windows have in common"),
        "max_seq_len": Parameter(is_positive_int, "a whole number from 1: the most tokens of a window"),
        "max_question_len": Parameter(is_positive_int, "a whole number from 1: tokens of a question beyond it are cut"),
    }

    def __init__(self, encoder: Encoder, null: str | None) -> None:
        super().__init__(encoder)
        self._null_id: int | None = None if null is None else encoder.tokenizer.token_to_id(null)

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> "Questions":
        """The questions of an extracted archive, see `Encoder.open`."""
        return cls(Encoder.open(folder, serving), serving["null_token"])

    def decode(self, value: Any, where: str) -> Question:
        if not isinstance(value, dict):
            raise BadRequest(
                f"{where} is {kind_of(value)}; an object with 'question' and 'context' is expected; {self.allowed}"
            )
        unknown = sorted(set(value) - set(self.fields))
        if unknown:
            raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: 'question', 'context'")
        missing = [name for name in self.fields if name not in value]
        if missing:
            raise BadRequest(f"{where} has no {' and no '.join(map(repr, missing))}; {self.allowed}")
        return Question(*(checked_text(value[name], f"{where}.{name}") for name in self.fields))

    def windows(self, values: Sequence[Question], parameters: Mapping[str, Any]) -> list[Sequence[Window]]:
        most = self.encoder.max_length
        length = parameters.get("max_seq_len", most)
        if length > most:
            raise BadRequest(f"parameter 'max_seq_len' is {length}; at most {most} tokens are allowed")
        return [self._windows(value, index, length, parameters) for index, value in enumerate(values)]

    def _windows(self, value: Question, index: int, length: int, parameters: Mapping[str, Any]) -> Sequence[Window]:
        encoding = self.encoder.tokenizer.encode(value.question, value.context)
        asked = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
        bound = parameters.get("max_question_len", len(asked))
        if len(asked) > bound:
            shorter = value.question[: encoding.offsets[asked[bound - 1]][1]]
            encoding = self.encoder.tokenizer.encode(shorter, value.context)
            asked = asked[:bound]
        if len(asked) > length // 2:
            raise BadRequest(
                f"inputs[{index}].question has {len(asked)} tokens; at most {length // 2} are allowed, half of a window of "
                f"{length}: ask in fewer words, or set 'max_question_len'"
            )
        return cut(
            encoding,
            pair=True,
            length=length,
            overlap=parameters.get("doc_stride"),
            default=min(STRIDE, length // 2),
            where=f"inputs[{index}].context",
            null_id=self._null_id,
        )

    def to_stored(self, value: Question) -> Any:
        return {"question": value.question, "context": value.context}

    def from_stored(self, stored: Any) -> Question:
        return Question(stored["question"], stored["context"])
