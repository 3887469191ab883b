"""What answers requests to a task of one pass: a handlers.base.BatchHandler, whose methods say more."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from handlers.protocols.request import Request


class Answering(Protocol):
    """Reads a request, and makes its answer when its items have run."""

    def accept(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Request, list[Sequence[Any]]]:
        """A request, read, and the items to run for each of its inputs."""
        ...

    def answer(
        self,
        request: Request,
        prepared: Sequence[Sequence[Any]],
        outputs: Sequence[np.ndarray | None],
        broken: Exception | None,
    ) -> tuple[int, bytes, str]:
        """HTTP status, body, and its content type."""
        ...
