"""A text-generation handler over a tiny llama on torch, and requests to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from torchserve_side import REST, Told, ask

from handlers.generation.backend import Step
from handlers.inputs.text import TextInput
from handlers.tasks.text.generation import TextGenerationHandler

TASK = "text-generation"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} .{% endfor %}"
SESSION = {
    "runtime": "torch",
    "requirement": "transformers>=5.0",
    "config": "config.json",
    "model": "model.safetensors",
    "max_running": 4,
}
SERVING: dict[str, Any] = {
    "session": SESSION,
    "max_inputs": 4,
    "max_length": 32,
    "max_queue": 16,
    "deadline_s": 60.0,
    "chat": {"template": TEMPLATE, "tokens": {"bos_token": "<s>"}},
    "end_ids": [2],
    "tolerance": 0.001,
    "example_tokens": 5,
}


def ask_all(handler: TextGenerationHandler, *documents: Any, headers: Mapping[str, Any] = REST) -> list[Told]:
    """All at once, as TorchServe's asynchronous service hands them over."""

    async def together() -> list[Told]:
        return await asyncio.gather(*(ask(handler, {"body": document}, headers) for document in documents))

    return asyncio.run(together())


def one(handler: TextGenerationHandler, document: Any, headers: Mapping[str, Any] = REST, **more: Any) -> Told:
    return asyncio.run(ask(handler, {"body": document, **more}, headers))


def asked(text: Any, tokens: int | None = 6, **parameters: Any) -> dict[str, Any]:
    given = parameters if tokens is None else {"max_new_tokens": tokens, **parameters}
    return {"inputs": text, "parameters": given}


def ids_of(handler: TextGenerationHandler, text: str) -> list[int]:
    return handler.input.encoder.encode([TextInput(text)], truncate=False)[0].ids


def told_events(told: Told) -> list[Any]:
    lines = told.body.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def slowed(handler: TextGenerationHandler, before: Callable[[], Any]) -> None:
    """Call `before` in front of every step of the model."""
    step = handler.backend.step

    def slow() -> list[Step]:
        before()
        return step()

    handler.backend.step = slow  # type: ignore[method-assign]
