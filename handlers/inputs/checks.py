"""Checks of single values that a request sends; a wrong one is a BadRequest that says what is allowed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest

MAX_CHARACTERS = 1_000_000  # of one text; far beyond any max_length, it bounds what one request may cost the tokenizer


@dataclass(frozen=True)
class Parameter:
    """A request parameter: `check` says whether a value is allowed, `allowed` puts that in words."""

    check: Callable[[Any], bool]
    allowed: str


def is_bool(value: Any) -> bool:
    """Whether the value is true or false."""
    return isinstance(value, bool)


def is_positive_int(value: Any) -> bool:
    """Whether the value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def checked_text(value: Any, where: str) -> str:
    """A text that can be answered.

    Args:
        value: what was sent. where: its place in the request, for the message.
    Returns: the value.
    Raises: BadRequest when it is no text, empty, too long or no valid Unicode.
    """
    if not isinstance(value, str):
        raise BadRequest(f"{where} is {kind_of(value)}; a text is expected")
    if not value.strip():
        raise BadRequest(f"{where} is empty; at least one character that is no white space is expected")
    if len(value) > MAX_CHARACTERS:
        raise BadRequest(f"{where} has {len(value)} characters; at most {MAX_CHARACTERS} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where} holds a lone surrogate at character {error.start}; send valid Unicode") from error
    return value


def text_of(value: Any, where: str) -> str:
    """A single text of a request, from a JSON value or a body's bytes; BadRequest says what is wrong with it."""
    return checked_text(decoded(value) if isinstance(value, bytes) else value, where)


def checked_parameters(value: Any, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters of a request.

    Args:
        value: an object, or None for no parameters. known: the parameters that are allowed, by name.
    Returns: the value, {} for None.
    Raises: BadRequest naming the first one that is unknown or has a value that is not allowed.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"'parameters' is {kind_of(value)}, an object is expected")
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise BadRequest(f"unknown parameter {quoted(unknown)}; allowed: {quoted(sorted(known), most=50)}")
    for name, found in value.items():
        if not known[name].check(found):
            # Not all of a list or object: it may be nested as deeply as json could just read it.
            shown = kind_of(found) if isinstance(found, (list, dict)) else json.dumps(found)
            raise BadRequest(f"parameter '{name}' is {shown[:60]}; allowed: {known[name].allowed}")
    return value


def decoded(body: bytes) -> str:
    """A body's text; a byte order mark is left out.

    Raises: BadRequest naming the first byte that is no UTF-8.
    """
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from error


def quoted(names: list[str], most: int = 5) -> str:
    """The names in quotation marks, with a comma between; of more than `most` only how many more there are."""
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def kind_of(value: Any) -> str:
    """What JSON calls a value of this kind, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
