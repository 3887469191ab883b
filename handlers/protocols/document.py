"""The JSON document that a request sends, however it arrives: the first step of every wire form.

TorchServe hands over, per request, a dict of form fields or {"body": …}, already decoded when the content type is exactly
`application/json` or begins with `text`, and raw bytes otherwise (gRPC, form fields, no type, a charset behind the type).
"""

import json
from collections.abc import Mapping
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import decoded, quoted
from handlers.protocols.headers import header_of

# TorchServe parses such a body itself: of one that is no form, as curl -d sends JSON, nothing arrives here.
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


def read_document(row: Mapping[str, Any], headers: Mapping[str, Any], allowed: str, max_bytes: int) -> Any:
    """The JSON document of one request; a body that is no JSON is {"inputs": the text, or the bytes as they came}.

    Args:
        row: the request's fields. headers: its own and its fields'. allowed: what to send, in words.
        max_bytes: most bytes of the body.
    Returns: any JSON value; the forms check its shape, the kind of input what is in it.
    Raises: BadRequest for a missing or empty body and for broken JSON, with the code 413 for one that is too large.
    """
    size = body_bytes(row, headers)
    if size > max_bytes:
        raise BadRequest(f"the body has {size} bytes; at most {max_bytes} are allowed", 413)
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
    if content_type == JSON or not isinstance(value, str):
        return value
    return {"inputs": value.removeprefix("\ufeff")}  # TorchServe decodes, and leaves the mark


def body_bytes(row: Mapping[str, Any], headers: Mapping[str, Any]) -> int:
    """How many bytes a request's body has: as it says itself, since JSON comes parsed; else those of its fields."""
    stated = header_of(headers, "content-length") or ""
    held = sum(len(value) for value in row.values() if isinstance(value, (bytes, bytearray, str)))
    return max(held, int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else 0)


def _content_type(headers: Mapping[str, Any], field: str) -> str:
    """The field's own content type, else the request's, without its parameters."""
    own = headers.get(field)
    own = own.get("content-type") if isinstance(own, Mapping) else None
    if not own:
        own = header_of(headers, "content-type") or ""
    return str(own).partition(";")[0].strip().lower()


def _from_bytes(body: bytes, content_type: str, allowed: str) -> Any:
    """JSON where the content type says so, and without one where it begins with {; else the bytes are the input."""
    if not body:
        raise BadRequest(f"the body is empty; {allowed}")
    declared = content_type == JSON
    if not declared and (content_type.startswith("text/") or not _begins_like_json(body)):
        return {"inputs": body}
    try:
        return json.loads(decoded(body))
    except RecursionError as error:
        raise BadRequest(f"the JSON is nested too deeply; {allowed}") from error
    except BadRequest:
        raise
    except ValueError as error:
        reason = getattr(error, "msg", "a number is too long")
        place = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        hint = "" if declared else " (a body that begins with { is read as JSON; send plain text as text/plain)"
        raise BadRequest(f"the body is not valid JSON: {reason}{place}{hint}") from error


def _begins_like_json(body: bytes) -> bool:
    """Whether the first character that is no white space is {; bytes that are no UTF-8 are judged by the input's kind."""
    try:
        return body.decode("utf-8-sig").lstrip().startswith("{")
    except UnicodeDecodeError:
        return False
