"""What all answers in OpenAI's form share: errors, and which keys only describe a request.

Source: OpenAI's API reference; the error object as their clients read it.
"""

from collections.abc import Mapping
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, kind_of, quoted
from handlers.protocols.reply import to_json

# Accepted and without effect: they say something about the request, and ask for nothing.
DESCRIBING: dict[str, Parameter] = {
    "model": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing: the URL names the model"),
    "user": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
    "metadata": Parameter(lambda value: isinstance(value, dict), "an object, which changes nothing"),
    "store": Parameter(lambda value: isinstance(value, bool), "true or false, which changes nothing"),
    "service_tier": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
    "safety_identifier": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
    "prompt_cache_key": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
}
_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 413: "invalid_request_error"}


def openai_error(code: int, message: str) -> bytes:
    """The body that tells a mistake to OpenAI's clients."""
    return to_json(
        {"error": {"message": message, "type": _TYPES.get(code, "server_error"), "param": None, "code": None}}
    )


class OpenAIForm:
    """What forms of OpenAI's kind share."""

    def error(self, code: int, message: str) -> bytes:
        """See `openai_error`."""
        return openai_error(code, message)


def checked_keys(document: Any, known: Mapping[str, Parameter], needed: str) -> dict[str, Any]:
    """The keys of a body that are set: null, which OpenAI's clients send for what was not set, is left out.

    Args:
        known: what may be in it, by name. needed: the key that must be.
    Raises: BadRequest naming what is unknown, missing or not allowed.
    """
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}; an object with {needed!r} is expected")
    given = {name: value for name, value in document.items() if value is not None}
    if unknown := sorted(set(given) - set(known)):
        raise BadRequest(f"unknown key {quoted(unknown)} in the body; allowed: {quoted(sorted(known), most=50)}")
    if needed not in given:
        raise BadRequest(f"the body has no {needed!r}; allowed: {quoted(sorted(known), most=50)}")
    for name, value in given.items():
        if not known[name].check(value):
            raise BadRequest(f"{name!r} is {kind_of(value)}; allowed: {known[name].allowed}")
    return given
