"""How texts are answered: whole or as server-sent events, in Hugging Face's form or in OpenAI's."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from handlers.base import to_json
from handlers.generation.backend import LENGTH, STOP
from handlers.generation.engine import STOP_STRING, TIME, Job
from handlers.generation.request import CHAT, HF, GenerationRequest

EVENTS = "text/event-stream"
JSON = "application/json"
DONE = b"data: [DONE]\n\n"
# Text Generation Inference's words, and OpenAI's; "time" (a deadline passed) is in neither list and says what happened.
_HF_REASONS = {STOP: "eos_token", STOP_STRING: "stop_sequence", LENGTH: "length", TIME: "time"}
_OPENAI_REASONS = {STOP: "stop", STOP_STRING: "stop", LENGTH: "length", TIME: "time"}


_NO_TOKEN = {"id": None, "text": "", "logprob": None, "special": True}


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def usage(jobs: Sequence[Job]) -> dict[str, int]:
    """Tokens in and out, as OpenAI counts them."""
    prompt, written = sum(len(job.prompt) for job in jobs), sum(len(job.ids) for job in jobs)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


class Answer:
    """One request's answer. model: the name that OpenAI's form repeats."""

    def __init__(self, request: GenerationRequest, model: str) -> None:
        self._request = request
        self._model = model
        self._id = uuid.uuid4().hex
        self._created = int(time.time())
        self._begun = False
        self._told = 0

    def whole(self, jobs: Sequence[Job]) -> bytes:
        """The JSON body, when all of them are done."""
        request = self._request
        if request.style == HF:
            answers = [[self._generated(job, text)] for job, text in zip(jobs, request.prompts, strict=True)]
            return to_json(answers[0] if request.single else answers)
        job = jobs[0]
        shown: dict[str, Any] = (
            {"message": {"role": "assistant", "content": job.text}} if request.style == CHAT else {"text": job.text}
        )
        choice = {"index": 0, **shown, "logprobs": None, "finish_reason": _OPENAI_REASONS[job.finish or LENGTH]}
        return to_json(self._openai([choice], chunk=False) | {"usage": usage(jobs)})

    def piece(self, job: Job, text: str) -> bytes:
        """The event of a step in which `job` got new tokens; empty where there is nothing to tell yet."""
        request = self._request
        if request.style == HF:
            new, self._told = job.ids[self._told :], len(job.ids)
            if not new and not text:
                return b""
            return event(
                {"index": self._told, "token": self._token(job, text), "generated_text": None, "details": None}
            )
        if not text:
            return b""
        if request.style == CHAT:
            return self._beginning() + self._chat_chunk({"content": text})
        return event(self._openai([{"index": 0, "text": text, "logprobs": None, "finish_reason": None}], chunk=True))

    def ending(self, job: Job, text: str) -> bytes:
        """The last events of a stream, with the text that came last."""
        request = self._request
        if request.style == HF:
            last = {
                "index": len(job.ids),
                # Behind the end token, which is no part of the text, there is none to name.
                "token": self._token(job, text) if len(job.ids) > self._told else {**_NO_TOKEN, "text": text},
                "generated_text": (request.prompts[0] if request.full_text else "") + job.text,
                "details": self._details(job, tokens=False),
            }
            return event(last)
        out = self.piece(job, text)
        reason = _OPENAI_REASONS[job.finish or LENGTH]
        if request.style == CHAT:
            out += self._beginning() + self._chat_chunk({}, reason)
        else:
            choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason}
            out += event(self._openai([choice], chunk=True))
        if request.usage_chunk:
            out += event(self._openai([], chunk=True) | {"usage": usage([job])})
        return out + DONE

    def _generated(self, job: Job, text: str) -> dict[str, Any]:
        found: dict[str, Any] = {"generated_text": (text if self._request.full_text else "") + job.text}
        return found | ({"details": self._details(job, tokens=True)} if self._request.details else {})

    def _details(self, job: Job, tokens: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "finish_reason": _HF_REASONS[job.finish or LENGTH],
            "generated_tokens": len(job.ids),
            "prompt_tokens": len(job.prompt),
            "seed": job.sampling.seed if job.sampling.do_sample else None,
        }
        if tokens:
            logprobs: Sequence[float | None] = job.logprobs or [None] * len(job.ids)
            found["tokens"] = [
                {"id": token, "logprob": value if value is None else round(value, 6)}
                for token, value in zip(job.ids, logprobs, strict=True)
            ]
        return found

    def _token(self, job: Job, text: str) -> dict[str, Any]:
        """The newest token, with all text that became certain with it."""
        logprob = round(job.logprobs[-1], 6) if job.logprobs else None
        return {"id": job.ids[-1], "text": text, "logprob": logprob, "special": False}

    def _beginning(self) -> bytes:
        """A chat's first chunk says who speaks."""
        if self._begun:
            return b""
        self._begun = True
        return self._chat_chunk({"role": "assistant", "content": ""})

    def _chat_chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._openai([choice], chunk=True))

    def _openai(self, choices: list[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        chat = self._request.style == CHAT
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        return {
            "id": f"{prefix}-{self._id}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
