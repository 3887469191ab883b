"""Answers in OpenAI's form: completions and chats, whole and as server-sent events.

Source: OpenAI's API reference, «Completions» and «Chat completions».
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.protocols.continuation import LENGTH, STOP, STOP_STRING, TIME, Continuation
from handlers.protocols.reply import event

DONE = b"data: [DONE]\n\n"
# OpenAI's words; "time" (a deadline passed) is not among its own and says what happened.
_REASONS = {STOP: "stop", STOP_STRING: "stop", LENGTH: "length", TIME: "time"}


def usage_of(found: Sequence[Continuation]) -> dict[str, int]:
    """Tokens in and out, as OpenAI counts them."""
    prompt, written = sum(len(job.prompt) for job in found), sum(len(job.ids) for job in found)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


@dataclass
class Renderer(ABC):
    """What completions and chats share. model: the name that answers repeat. usage: whether a stream ends with it."""

    model: str
    usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def ending(self, found: Continuation, text: str) -> bytes:
        """What is left of the text, why it ended, the usage where it is asked for, and [DONE]."""
        out = self.piece(found, text) + self._end(_REASONS[found.finish or LENGTH])
        if self.usage:
            out += event(self._body([], chunk=True) | {"usage": usage_of([found])})
        return out + DONE

    @abstractmethod
    def whole(self, found: Sequence[Continuation]) -> Any:
        """The JSON value to answer when the text is there."""

    @abstractmethod
    def piece(self, found: Continuation, text: str) -> bytes:
        """The chunk with the new text; none where there is no new text."""

    @abstractmethod
    def _end(self, reason: str) -> bytes:
        """The chunk that says why the text ended."""

    @abstractmethod
    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        """The object of this form around `choices`; chunk: as a stream has it."""

    def _answer(self, found: Sequence[Continuation], shown: Mapping[str, Any]) -> Any:
        reason = _REASONS[found[0].finish or LENGTH]
        choice = {"index": 0, **shown, "logprobs": None, "finish_reason": reason}
        return self._body([choice], chunk=False) | {"usage": usage_of(found)}

    def _head(self, name: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{name}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass
class CompletionRenderer(Renderer):
    """The answer to {"prompt": …}."""

    def whole(self, found: Sequence[Continuation]) -> Any:
        return self._answer(found, {"text": found[0].text})

    def piece(self, found: Continuation, text: str) -> bytes:
        return self._chunk(text, None) if text else b""

    def _end(self, reason: str) -> bytes:
        return self._chunk("", reason)

    def _chunk(self, text: str, reason: str | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return event(self._body([choice], chunk=True))

    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        return self._head("cmpl", "text_completion", choices)


@dataclass
class ChatRenderer(Renderer):
    """The answer to {"messages": […]}; a stream's first chunk has the role."""

    _begun: bool = field(default=False, init=False)

    def whole(self, found: Sequence[Continuation]) -> Any:
        return self._answer(found, {"message": {"role": "assistant", "content": found[0].text}})

    def piece(self, found: Continuation, text: str) -> bytes:
        return self._beginning() + self._chunk({"content": text}) if text else b""

    def _end(self, reason: str) -> bytes:
        return self._beginning() + self._chunk({}, reason)

    def _beginning(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._body([choice], chunk=True))

    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        return self._head("chatcmpl", "chat.completion.chunk" if chunk else "chat.completion", choices)
