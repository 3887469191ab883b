"""What the encoders' tasks share: inputs of like length run together, one row of numbers per input.

A subclass names its request parameters and turns one output row into one answer.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Ran
from handlers.batching import plan
from handlers.errors import BadRequest
from handlers.inputs.text import Encoded, TextInput
from handlers.protocols.payload import Parameter, Request, is_bool
from handlers.runtimes.base import open_session

logger = logging.getLogger(__name__)


class EncoderHandler(BatchHandler):
    """Raw outputs are [n, width] float32: logits, or pooled vectors."""

    common_parameters: ClassVar[dict[str, Parameter]] = {"truncation": Parameter(is_bool, "true or false")}

    @abstractmethod
    def scores(self, rows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
        """Raw outputs [n, width] float32 to the numbers that are answered, same shape."""

    @abstractmethod
    def present(self, row: np.ndarray, parameters: Mapping[str, Any]) -> Any:
        """One row of `scores` to its JSON answer."""

    def load(self, folder: Path, threads: int) -> None:
        self.session = open_session(folder, self.serving["session"], threads=threads)

    def items(self, request: Request) -> list[Encoded]:
        encoded = self.encoder.encode(request.inputs, truncate=request.parameters.get("truncation", True))
        for index, item in enumerate(encoded):
            if len(item.ids) > self.encoder.max_length:
                raise BadRequest(
                    f"inputs[{index}] has {len(item.ids)} tokens; at most {self.encoder.max_length} are allowed "
                    "with 'truncation': false"
                )
        return encoded

    def run(self, items: Sequence[Encoded]) -> Ran:
        """Outputs [n, width] in order."""
        batches = plan([len(item.ids) for item in items], **self.serving["batching"])
        rows: np.ndarray = np.zeros((len(items), 0), np.float32)
        ran = Ran(
            rows,
            tokens=sum(len(item.ids) for item in items),
            computed_tokens=sum(batch.computed_tokens for batch in batches),
        )
        for batch in batches:
            members = list(batch.members)
            try:
                output = self.session.run(self.encoder.pad([items[i] for i in members], batch.length, batch.rows))
            except Exception as error:  # the runtime failed on this sub-batch: the others are still answered
                logger.exception("a sub-batch of %d inputs × %d tokens failed", len(members), batch.length)
                ran.failed |= dict.fromkeys(members, error)
                continue
            if not rows.shape[1]:
                ran.outputs = rows = np.zeros((len(items), output.shape[1]), np.float32)
            rows[members] = output[: len(members)]
        return ran

    def predict(self, inputs: Sequence[TextInput]) -> np.ndarray:
        """Raw outputs [n, width] of `inputs` in order, through the same encoding and sub-batches as served ones."""
        ran = self.run(self.encoder.encode(inputs))
        if ran.failed:
            raise next(iter(ran.failed.values()))
        return ran.outputs

    def answers(self, outputs: np.ndarray, request: Request) -> list[Any]:
        numbers = self.scores(outputs, request.parameters)
        if not np.isfinite(numbers).all():
            raise ArithmeticError("the model's answer is not finite")
        return [self.present(row, request.parameters) for row in numbers]
