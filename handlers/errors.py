"""What may go wrong while serving: a request's own mistake, or an archive that cannot be loaded."""

from collections.abc import Callable


class BadRequest(ValueError):
    """The request is at fault; the message says what is wrong and what is allowed. Answered with HTTP `code`.

    render: makes the body from code and message, where the request is in a form that has its own for mistakes.
    """

    def __init__(self, message: str, code: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.render: Callable[[int, str], bytes] | None = None


class UnsoundArchive(RuntimeError):
    """The archive or its host is at fault. A RuntimeError, because that is what TorchServe logs with its sentence."""
