"""A request for text as it comes, read; and what a bad one is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from handlers.errors import BadRequest
from handlers.inputs.base import MAX_BODY
from handlers.protocols.continuation import GenerationRequest, Sampling
from handlers.protocols.document import read_document
from handlers.protocols.generation import ALLOWED, read_request

JSON = {"content-type": "application/json"}
SEED = 4711  # the one that is drawn where a request names none
USER = {"role": "user", "content": "hi"}


def render(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def read(value: Any, headers: Mapping[str, Any] = JSON, field: str = "body", **more: Any) -> tuple[Any, Any]:
    """The request, and what renders its answer."""
    settings: dict[str, Any] = {"max_inputs": 3, "chat": render, "model": "m", "random_seed": lambda: SEED} | more
    return read_request(read_document({field: value}, headers, ALLOWED, MAX_BODY), **settings)


def ask(*args: Any, **more: Any) -> GenerationRequest:
    return read(*args, **more)[0]


def hf_request(*prompts: str, single: bool = True, sampling: Sampling | None = None, **more: Any) -> GenerationRequest:
    places = ("the prompt",) if single else tuple(f"inputs[{index}]" for index in range(len(prompts)))
    return GenerationRequest(prompts, places, sampling or Sampling(0), 64, **more)


def hf(**parameters: Any) -> GenerationRequest:
    return ask({"inputs": "a film", "parameters": parameters})


def completion(**given: Any) -> GenerationRequest:
    return ask({"prompt": "a film", **given})


def refusal(document: Any, **more: Any) -> str:
    with pytest.raises(BadRequest, match=r"\w") as refused:
        ask(document, **more)
    assert refused.value.code == 400
    return str(refused.value)
