"""Files that a request sends: as the body's own bytes, or within JSON in base64, bare or as a data: URL."""

import base64
import binascii
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import kind_of

_ADDRESSES = ("http://", "https://", "file://", "ftp://", "s3://")


def file_bytes(value: Any, where: str, *, what: str, media: str) -> bytes:
    """The bytes of one file of a request.

    Args:
        value: bytes, or a JSON value: a text in base64. where: its place in the request, for messages.
        what: what is expected, with its article ("an image"). media: a media type of it, for the messages' example.
    Returns: the bytes, at least one.
    Raises: BadRequest for another kind of value, an address, what is no base64, and a file of 0 bytes.
    """
    if isinstance(value, str):
        value = _from_base64(value, where, what, media)
    if not isinstance(value, bytes):
        raise BadRequest(f"{where} is {kind_of(value)}; {what} is expected, as a text in base64")
    if not value:
        raise BadRequest(f"{where} is a file of 0 bytes; {what} is expected")
    return value


def _from_base64(text: str, where: str, what: str, media: str) -> bytes:
    """The bytes of a text in base64; a data: URL's head is left out, white space too."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadRequest(f"{where} is a data: URL without ';base64,'; send data:{media};base64,…")
    elif text.lower().startswith(_ADDRESSES):
        raise BadRequest(f"{where} is an address, and none is fetched; send {what} itself, in base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{where} is a text that is not base64 ({error}); send {what} in base64") from error
