"""Answers in OpenAI's form: completions and chats, whole and as server-sent events.

Source: OpenAI's API reference, «Completions» and «Chat completions».
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.protocols.continuation import LENGTH, STOP, STOP_STRING, TIME, Continuation
from handlers.protocols.openai.calls import Call, CallReader
from handlers.protocols.reply import event

DONE = b"data: [DONE]\n\n"
# OpenAI's words; "time" (a deadline passed) is not among its own and says what happened.
_REASONS = {STOP: "stop", STOP_STRING: "stop", LENGTH: "length", TIME: "time"}

Spell = Callable[[int], str]  # a token id to its text


def usage_of(found: Sequence[Continuation], choices: int = 1) -> dict[str, int]:
    """Tokens in and out, as OpenAI counts them.

    Args:
        choices: texts that were written for each prompt, which counts once.
    """
    prompt, written = sum(len(job.prompt) for job in found[::choices]), sum(len(job.ids) for job in found)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


@dataclass
class Renderer(ABC):
    """What completions and chats share.

    Args:
        model: the name that answers repeat. usage: whether a stream ends with it. choices: texts for each prompt.
        spell: where log-probabilities of the tokens that were chosen are asked for, a token id to its text.
    """

    model: str
    usage: bool = False
    choices: int = 1
    spell: Spell | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _told: dict[int, int] = field(default_factory=dict, init=False)  # by choice, the tokens that are out

    def whole(self, found: Sequence[Continuation]) -> Any:
        """The JSON value to answer when the texts are there."""
        choices = [
            {"index": index, **self._whole(job, index)}
            | {"logprobs": self._logprobs(job, 0, 0), "finish_reason": self._reason(job)}
            for index, job in enumerate(found)
        ]
        return self._body(choices, chunk=False) | {"usage": usage_of(found, self.choices)}

    def ending(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """What is left of the text, and why it ended."""
        return self.piece(found, text, index) + self._end(self._reason(found), index)

    def closing(self, found: Sequence[Continuation]) -> bytes:
        """The usage where it is asked for, and [DONE]."""
        told = event(self._body([], chunk=True) | {"usage": usage_of(found, self.choices)}) if self.usage else b""
        return told + DONE

    @abstractmethod
    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """The chunk with the new text; none where there is no new text."""

    @abstractmethod
    def _whole(self, found: Continuation, index: int) -> dict[str, Any]:
        """The text of choice `index`."""

    @abstractmethod
    def _end(self, reason: str, index: int) -> bytes:
        """The chunk that says why text `index` ended."""

    @abstractmethod
    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        """The object of this form around `choices`; chunk: as a stream has it."""

    @abstractmethod
    def _logprobs(self, found: Continuation, start: int, offset: int) -> Any:
        """The log-probabilities of the tokens from number `start`; None where they are not asked for.

        Args:
            offset: characters of the text before them.
        """

    def _reason(self, found: Continuation) -> str:
        """Why a text ended, in OpenAI's words."""
        return _REASONS[found.finish or LENGTH]

    def _new(self, found: Continuation, index: int) -> int:
        """The number of the first token that this choice's chunks have not told yet; from now on they have."""
        before, self._told[index] = self._told.get(index, 0), len(found.ids)
        return before

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
    """The answer to {"prompt": …}. before: what stands before each text, its prompt or nothing."""

    before: Sequence[str] = ()

    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        echo = self._before(index) if index not in self._told else ""
        if not echo and not text:
            return b""
        return self._chunk(echo + text, None, index, self._logprobs(found, self._new(found, index), len(echo)))

    def _whole(self, found: Continuation, index: int) -> dict[str, Any]:
        return {"text": self._before(index) + found.text}

    def _end(self, reason: str, index: int) -> bytes:
        return self._chunk("", reason, index)

    def _before(self, index: int) -> str:
        return self.before[index] if self.before else ""

    def _chunk(self, text: str, reason: str | None, index: int, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event(self._body([choice], chunk=True))

    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        return self._head("cmpl", "text_completion", choices)

    def _logprobs(self, found: Continuation, start: int, offset: int) -> Any:
        if self.spell is None:
            return None
        tokens = [self.spell(token) for token in found.ids[start:]]
        offsets = [offset + sum(map(len, tokens[:place])) for place in range(len(tokens))]
        values = [round(value, 6) for value in found.logprobs[start:]]
        tops = [
            {self.spell(token): round(value, 6) for token, value in [*top, (chosen, found.logprobs[start + place])]}
            for place, (chosen, top) in enumerate(zip(found.ids[start:], found.tops[start:], strict=False))
        ]  # with the chosen token, so that there may be one more
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops or None, "text_offset": offsets}


@dataclass
class ChatRenderer(Renderer):
    """The answer to {"messages": […]}; a stream's first chunk of each choice has the role.

    reader: where functions may be called, what tells the calls from the text.
    """

    reader: CallReader | None = None
    _sent: dict[int, "_Sent"] = field(default_factory=dict, init=False)  # by choice

    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        deltas = ([{"content": text}] if text else []) if self.reader is None else self._deltas(found, index)
        if not deltas:
            return b""
        begin = self._beginning(index)
        logprobs = self._logprobs(found, self._new(found, index), 0)
        first, *others = deltas
        chunks = [self._chunk(first, index, logprobs=logprobs), *(self._chunk(delta, index) for delta in others)]
        return begin + b"".join(chunks)

    def _whole(self, found: Continuation, index: int) -> dict[str, Any]:
        content, calls = self._read(found)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            called = [self._call(call) for call in calls]
            message |= {"content": content or None, "tool_calls": called}
        return {"message": message}

    def _read(self, found: Continuation) -> tuple[str, list[Call]]:
        return (found.text, []) if self.reader is None else self.reader.read(found.text, found.finish is not None)

    def _reason(self, found: Continuation) -> str:
        reason = super()._reason(found)
        return "tool_calls" if reason == _REASONS[STOP] and self._read(found)[1] else reason

    def _deltas(self, found: Continuation, index: int) -> list[dict[str, Any]]:
        """What is new of a text and its calls since the last chunk."""
        content, calls = self._read(found)
        sent = self._sent.setdefault(index, _Sent())
        deltas: list[dict[str, Any]] = []
        if new := content[sent.content :]:
            deltas.append({"content": new})
            sent.content = len(content)
        for number, call in enumerate(calls):
            if number == len(sent.arguments):
                begun = self._call(Call(call.name, ""))
                deltas.append({"tool_calls": [{"index": number, **begun}]})
                sent.arguments.append(0)
            if new := call.arguments[sent.arguments[number] :]:
                deltas.append({"tool_calls": [{"index": number, "function": {"arguments": new}}]})
                sent.arguments[number] = len(call.arguments)
        return deltas

    def _call(self, call: Call) -> dict[str, Any]:
        assert self.reader is not None
        name = self.reader.form.new_id()
        return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

    def _end(self, reason: str, index: int) -> bytes:
        return self._beginning(index) + self._chunk({}, index, reason)

    def _beginning(self, index: int) -> bytes:
        if index in self._told:
            return b""
        self._told[index] = 0
        return self._chunk({"role": "assistant", "content": ""}, index)

    def _chunk(self, delta: dict[str, Any], index: int, reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self._body([choice], chunk=True))

    def _body(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        return self._head("chatcmpl", "chat.completion.chunk" if chunk else "chat.completion", choices)

    def _logprobs(self, found: Continuation, start: int, offset: int) -> Any:
        if self.spell is None:
            return None
        tops = found.tops[start:] or [()] * len(found.ids[start:])
        content = [
            self._token(token, value) | {"top_logprobs": [self._token(*one) for one in top]}
            for token, value, top in zip(found.ids[start:], found.logprobs[start:], tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        assert self.spell is not None
        spelt = self.spell(token)
        return {"token": spelt, "logprob": round(logprob, 6), "bytes": list(spelt.encode())}


@dataclass
class _Sent:
    """How many characters of a choice are out: of its text, and of each call's arguments."""

    content: int = 0
    arguments: list[int] = field(default_factory=list)
