"""Requests to a handler in this process, as TorchServe hands them over."""

from __future__ import annotations

import json
from typing import Any

JSON = "application/json"


def ask(handler: Any, *bodies: Any) -> list[tuple[int, Any]]:
    """The status and the JSON value of each answer of one batch.

    Args:
        bodies: JSON values, or bytes as they come.
    """
    from ts.context import Context, RequestProcessor

    where = Context("m", ".", {}, len(bodies), None, "0.12.0")
    where.request_processor = [
        RequestProcessor({"content-type": "" if isinstance(body, bytes) else JSON}) for body in bodies
    ]
    where.metrics = None
    rows = [{"body": body if isinstance(body, bytes) else json.dumps(body).encode()} for body in bodies]
    answers = [json.loads(body) for body in handler.handle(rows, where)]
    return [(where.get_response_status(index)[0], answer) for index, answer in enumerate(answers)]


def refusal(handler: Any, body: Any) -> str:
    """The message of a request that is refused with 400."""
    ((status, answer),) = ask(handler, body)
    assert status == 400, answer
    return str(answer["error"]["message"])
