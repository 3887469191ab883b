"""What a request may be, and what a bad one is told (the table «Requests» of the README).

TorchServe hands over, per request, a dict of form fields or {"body": …}, already decoded when the content type is exactly
`application/json` or begins with `text`, and raw bytes otherwise (gRPC, form fields, no type, a charset behind the type).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.text import TextInput

ALLOWED = 'allowed: {"inputs": "text"}, {"inputs": ["text", …]}, {"inputs": {"text": …, "text_pair": …}}, or plain text'
# TorchServe parses such a body itself: of one that is no form, as curl -d sends JSON, nothing arrives here.
FORM = "application/x-www-form-urlencoded"
MAX_CHARACTERS = 1_000_000  # of one text; far beyond any max_length, it bounds what one request may cost the tokenizer


@dataclass(frozen=True)
class Request:
    """inputs: what to answer, in order. single: one input was sent bare, so one answer goes back bare."""

    inputs: tuple[TextInput, ...]
    single: bool
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A request parameter: `check` says whether a value is allowed, `allowed` puts that in words."""

    check: Callable[[Any], bool]
    allowed: str


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def parse(
    row: Mapping[str, Any], headers: Mapping[str, Any], *, parameters: Mapping[str, Parameter], max_inputs: int
) -> Request:
    """One request of TorchServe's batch. BadRequest says what is wrong and what is allowed."""
    return _from_document(read_document(row, headers), parameters, max_inputs)


def read_document(row: Mapping[str, Any], headers: Mapping[str, Any], allowed: str = ALLOWED) -> Any:
    """The JSON document that a request sends; plain text is {"inputs": text}. allowed: what to send, in words."""
    field = next((name for name in ("data", "body") if name in row), None)
    if field is None:
        found = quoted(list(row)) or "nothing"
        if _content_type(headers, "") == FORM:
            raise BadRequest(
                f"the body has the content type {FORM} (curl's default) and no field 'data' or 'body': found {found}; "
                "send the header 'Content-Type: application/json', or text/plain"
            )
        raise BadRequest(f"the request has no body: found {found}; send a body, or a form field 'data' or 'body'")
    value = row[field]
    content_type = _content_type(headers, field)
    if isinstance(value, (bytes, bytearray)):
        return _from_bytes(bytes(value), content_type, allowed)
    if content_type == "application/json" or not isinstance(value, str):
        return value
    return {"inputs": value.removeprefix("\ufeff")}  # TorchServe decodes, and leaves the mark


def _content_type(headers: Mapping[str, Any], field: str) -> str:
    """The field's own content type, else the request's, without its parameters."""
    own = headers.get(field)
    own = own.get("content-type") if isinstance(own, Mapping) else None
    if not own:
        own = next((v for k, v in headers.items() if isinstance(v, str) and k.lower() == "content-type"), "")
    return own.partition(";")[0].strip().lower()


def _from_bytes(body: bytes, content_type: str, allowed: str) -> Any:
    """JSON where the content type says so; without one, what begins with { is JSON, the rest is text."""
    if not body:
        raise BadRequest(f"the body is empty; {allowed}")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from error
    if content_type.startswith("text/"):
        return {"inputs": text}
    declared = content_type == "application/json"
    if not declared and not text.lstrip().startswith("{"):
        return {"inputs": text}
    try:
        return json.loads(text)
    except RecursionError as error:
        raise BadRequest(f"the JSON is nested too deeply; {allowed}") from error
    except ValueError as error:
        reason = getattr(error, "msg", "a number is too long")
        place = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        hint = "" if declared else " (a body that begins with { is read as JSON; send plain text as text/plain)"
        raise BadRequest(f"the body is not valid JSON: {reason}{place}{hint}") from error


def _from_document(document: Any, parameters: Mapping[str, Parameter], max_inputs: int) -> Request:
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}, an object is expected; {ALLOWED}")
    unknown = sorted(set(document) - {"inputs", "parameters"})
    if unknown:
        raise BadRequest(f"unknown key {quoted(unknown)} in the body; allowed: 'inputs', 'parameters'")
    if "inputs" not in document:
        raise BadRequest(f"the body has no 'inputs'; {ALLOWED}")
    inputs = document["inputs"]
    single = not isinstance(inputs, list)
    items: tuple[TextInput, ...]
    if single:
        items = (_input(inputs, "inputs"),)
    elif not inputs:
        raise BadRequest(f"'inputs' is an empty list; send 1 to {max_inputs} inputs")
    elif len(inputs) > max_inputs:
        raise BadRequest(f"'inputs' has {len(inputs)} elements; at most {max_inputs} are allowed in one request")
    else:
        items = tuple(_input(item, f"inputs[{index}]") for index, item in enumerate(inputs))
    return Request(items, single, checked_parameters(document.get("parameters"), parameters))


def _input(item: Any, where: str) -> TextInput:
    if isinstance(item, str):
        return TextInput(checked_text(item, where))
    if not isinstance(item, dict):
        raise BadRequest(f"{where} is {kind_of(item)}; a text or an object with 'text' and 'text_pair' is expected")
    unknown = sorted(set(item) - {"text", "text_pair"})
    if unknown:
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: 'text', 'text_pair'")
    if "text" not in item:
        raise BadRequest(f"{where} has no 'text'")
    pair = item.get("text_pair")
    return TextInput(
        checked_text(item["text"], f"{where}.text"), None if pair is None else checked_text(pair, f"{where}.text_pair")
    )


def checked_text(value: Any, where: str) -> str:
    """A text that can be answered; BadRequest says what is wrong with what stands at `where`."""
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


def checked_parameters(value: Any, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters of a request; BadRequest names the first that is unknown or has a value that is not allowed."""
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


def quoted(names: list[str], most: int = 5) -> str:
    """The names in quotation marks, with a comma between."""
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def kind_of(value: Any) -> str:
    """What JSON calls a value of this kind."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
