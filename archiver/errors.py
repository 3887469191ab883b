"""What can go wrong in a build, and the exit code that each kind ends a command with.

ArchiverError (1: our fault)
├── RecipeError (2: the recipe)
├── UnsupportedModelError (2: the model directory)
├── DataError (2: the data)
├── GateFailed (3: a bound of the gate was missed or could not be measured)
└── PackagingError (1: the archive could not be written, or is unsound)
"""

from __future__ import annotations

from collections.abc import Sequence


class ArchiverError(Exception):
    """Base of every error that marpress raises on purpose.

    message: one sentence (what failed, the value found, what is allowed, what to do)
    problems: when there are several mistakes, each as one line; `str()` lists them all, one a line
    """

    exit_code = 1

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems: list[str] = list(problems)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {problem}" for problem in self.problems)])


class RecipeError(ArchiverError):
    """The recipe asks for something that does not exist or cannot work."""

    exit_code = 2


class UnsupportedModelError(ArchiverError):
    """The model directory lacks something, or is of a kind that marpress cannot export."""

    exit_code = 2


class DataError(ArchiverError):
    """A data file is missing, unreadable or has bad rows."""

    exit_code = 2


class GateFailed(ArchiverError):
    """A bound of the recipe's gate was missed, or a metric it needs could not be measured."""

    exit_code = 3


class PackagingError(ArchiverError):
    """The archive could not be written, or one that was read is unsound."""
