"""A kind of input (texts; later images, audio, item ids): what a request may send, and what the runtime computes on.

A new kind is one file beside this one with one subclass of Input; the life of a batch (`handlers.base`) stays as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from handlers.inputs.checks import Parameter

Value = TypeVar("Value")  # one input as a request sends it, checked
Item = TypeVar("Item")  # the same, prepared for the runtime


MAX_BODY = 2 << 20  # bytes: 64 inputs of a few pages each


class Input(ABC, Generic[Value, Item]):
    """One kind of input.

    Attributes:
        allowed: what a body may be, in words.
        parameters: what a request may set about its inputs.
        fields: keys of an input that is an object, which a body may also have at its top, beside parameters.
        max_bytes: most bytes of one request's body.
    """

    allowed: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[dict[str, Parameter]] = {}
    max_bytes: ClassVar[int] = MAX_BODY

    @abstractmethod
    def decode(self, value: Any, where: str) -> Value:
        """One input of a request.

        Args:
            value: bytes (a body that is not JSON) or a JSON value. where: its place in the request, for messages.
        Returns: the input, checked.
        Raises: BadRequest saying what is wrong and what is allowed.
        """

    def check_together(self, values: Sequence[Value]) -> None:
        """Refuse inputs of one request that are too much together, although each of them may be sent.

        Args:
            values: all inputs of a request.
        Raises: BadRequest with the numbers found and allowed.
        """
        return None

    @abstractmethod
    def encode(self, values: Sequence[Value], parameters: Mapping[str, Any]) -> list[Item]:
        """Inputs prepared for the runtime.

        Args:
            values: [n] inputs. parameters: the request's, of which those in `parameters` are heeded.
        Returns: [n] items.
        Raises: BadRequest for an input that the parameters forbid, naming its index.
        """

    @abstractmethod
    def size(self, item: Item) -> int:
        """How much of an array's variable axis the item fills (tokens, samples), ≥ 1; 1 where there is no such axis."""

    @abstractmethod
    def collate(self, items: Sequence[Item], size: int, rows: int) -> dict[str, np.ndarray]:
        """Items as arrays for one run.

        Args:
            items: [n] items, each of size ≤ `size`. size: what they are padded to. rows: ≥ n; the rows beyond n are
                filled so that no operation of a model fails on them, and their outputs are not used.
        Returns: arrays [rows, …] by the name of the model's input.
        """

    @abstractmethod
    def to_stored(self, value: Value) -> Any:
        """An input as JSON, for a stored example."""

    @abstractmethod
    def from_stored(self, stored: Any) -> Value:
        """The input of a stored example: what `to_stored` wrote."""

    def to_request(self, value: Value) -> tuple[Any, dict[str, Any]]:
        """An input as a request sends it: (its 'inputs', its 'parameters'); by default as it is stored, without any."""
        return self.to_stored(value), {}
