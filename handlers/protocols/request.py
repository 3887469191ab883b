"""What a request asks for, apart from the form it came in: every form parses to this, and tasks see nothing else."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """inputs: what to answer, in order. single: one input was sent bare, so one answer goes back bare."""

    inputs: tuple[Any, ...]
    single: bool
    parameters: dict[str, Any]
