"""Which form a request is in: by the path behind the model's version, as OpenAI's clients and their like have one, else by
what its body looks like.

`/predictions/NAME/VERSION/embeddings` arrives with the header url_path: embeddings. With a version that is named v1,
`/predictions/NAME/v1` is a base URL for such clients; with any other, `/predictions/NAME/VERSION/v1` is.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import quoted
from handlers.protocols.document import body_bytes, read_document
from handlers.protocols.headers import header_of
from handlers.protocols.huggingface import forms as hf
from handlers.protocols.kserve import binary as binary_tensors
from handlers.protocols.kserve import forms as kserve
from handlers.protocols.openai.reply import openai_error
from handlers.protocols.reply import error_body, to_json
from handlers.protocols.request import Parse, Request, Spec, Told

_URL_PATH = "url_path"
_BASES = ("v1", "v2")  # Cohere's clients ask v2/rerank
MODELS = "models"


def path_of(headers: Mapping[str, Any]) -> str:
    """The path behind the model's version, without a base; "" where there is none."""
    found = header_of(headers, _URL_PATH) or ""
    parts = [part for part in found.split("/") if part]
    return "/".join(parts[1:] if parts and parts[0] in _BASES else parts)


def is_hub(headers: Mapping[str, Any]) -> bool:
    """Whether the client is huggingface_hub, by its user agent."""
    return "hf_hub/" in (header_of(headers, "user-agent") or "")


def refusal(headers: Mapping[str, Any], code: int, message: str) -> bytes:
    """The body that tells a mistake in a request, before it is known what it asks."""
    return openai_error(code, message) if path_of(headers) else error_body(code, message)


def check_path(path: str, own: Mapping[str, Any], model: str, adapters: Sequence[str] = ()) -> None:
    """Whether a task has this path, before the body is read.

    Args:
        path: as `path_of` gives it. own: the task's, by path. model: its name. adapters: of LoRA, listed as models.
    Raises: Told for what needs no model. BadRequest 404 for a path that the task has not.
    """
    if not path or path in own:
        return
    created = int(time.time())
    described = [
        {"id": name, "object": "model", "created": created, "owned_by": "marpress"} for name in (model, *adapters)
    ]
    if path == MODELS:
        raise Told(to_json({"object": "list", "data": described}))
    for one in described:
        if path == f"{MODELS}/{one['id']}":
            raise Told(to_json(one))
    raise BadRequest(f"there is no {path[:100]!r} here; this model has {quoted([MODELS, *own])}", 404)


def read(row: Mapping[str, Any], headers: Mapping[str, Any], allowed: str, max_bytes: int) -> Any:
    """The JSON document of a request, its binary tensors within it; see `read_document`.

    Raises: BadRequest.
    """
    head = binary_tensors.head_length(headers)
    body = row.get("body", row.get("data"))
    if head is None or not isinstance(body, (bytes, bytearray)):
        return read_document(row, headers, allowed, max_bytes)
    try:
        if (size := body_bytes(row, headers)) > max_bytes:
            raise BadRequest(f"the body has {size} bytes; at most {max_bytes} are allowed", 413)
        try:
            document = json.loads(bytes(body[:head]))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the first {head} bytes of the body are not valid JSON") from error
        return binary_tensors.filled(document, bytes(body[head:]))
    except BadRequest as error:
        error.render = kserve.kserve_error
        raise


def parse(document: Any, path: str, own: Mapping[str, Parse], spec: Spec) -> Request:
    """A request to a task of one pass, in whichever form it is.

    Args:
        document: as `read_document` gives it. path: as `path_of` gives it, one of `own` or "". own: the task's.
    Raises: BadRequest saying what is wrong and what is allowed, in the request's own form.
    """
    if path:
        return own[path](document, spec)
    if kserve.recognises(document):
        return kserve.parse(document, spec)
    return hf.parse(document, spec)
