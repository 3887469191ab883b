"""What a request asks for, apart from the form it came in: every form parses to this, and tasks see nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handlers.inputs.checks import Parameter


class Form(Protocol):
    """The form that one request came in, where it is not Hugging Face's, with what its answer repeats of it."""

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """The JSON value to answer, or a `reply.Text`.

        Args:
            answers: one for each input. tokens: that were read for them.
        Raises: BadRequest where the answers are not what was asked for.
        """
        ...

    def error(self, code: int, message: str) -> bytes:
        """The body that tells a mistake."""
        ...


@dataclass(frozen=True)
class Request:
    """inputs: what to answer, in order. single: one input was sent bare, so one answer goes back bare. form: None for
    Hugging Face's."""

    inputs: tuple[Any, ...]
    single: bool
    parameters: dict[str, Any]
    form: Form | None = None


@dataclass(frozen=True)
class Spec:
    """What requests to a task may be.

    Args:
        decode: one input, from a JSON value or bytes, with its place. parameters: what may be set, by name.
        max_inputs: of one request. allowed: what to send, in words. fields: keys of an input that is an object.
        model: its name, which answers repeat.
    """

    decode: Callable[[Any, str], Any]
    parameters: Mapping[str, Parameter]
    max_inputs: int
    allowed: str
    fields: Sequence[str] = ()
    model: str = ""


Parse = Callable[[Any, Spec], Request]


class Told(Exception):
    """The request is answered, and no model was needed. body: JSON."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.body = body
