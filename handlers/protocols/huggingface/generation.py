"""Hugging Face's form for text: {"inputs": …, "parameters": {…}, "stream": …}, answered whole or as server-sent events.

Source: Hugging Face Inference Endpoints; `details` and streams as Text Generation Inference has them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_parameters, is_bool, kind_of, text_of
from handlers.protocols import adapters as adapters_
from handlers.protocols.continuation import LENGTH, STOP, STOP_STRING, TIME, Continuation, GenerationRequest
from handlers.protocols.grammar import HUGGING_FACE, read_grammar
from handlers.protocols.huggingface.forms import check_keys, read_inputs, recognises, render
from handlers.protocols.reply import event
from handlers.protocols.sampling import BOOL, SAMPLING_PARAMETERS, TOKENS, number, read_sampling, read_stops

DEFAULT_NEW_TOKENS = 64
PARAMETERS: dict[str, Parameter] = {
    "max_new_tokens": TOKENS,
    "do_sample": BOOL,
    **SAMPLING_PARAMETERS,
    "return_full_text": BOOL,
    "details": BOOL,
    "max_time": Parameter(number(0, 1e6, open_end=True), "seconds, a number above 0"),
    **HUGGING_FACE,
    **adapters_.PARAMETERS,
}
# Text Generation Inference's words; "time" (a deadline passed) is not among its own and says what happened.
REASONS = {STOP: "eos_token", STOP_STRING: "stop_sequence", LENGTH: "length", TIME: "time"}
_NO_TOKEN = {"id": None, "text": "", "logprob": None, "special": True}


def parse(
    document: Mapping[str, Any], *, max_inputs: int, random_seed: Callable[[], int], adapters: Sequence[str] = ()
) -> tuple[GenerationRequest, "Renderer"]:
    """A request for text, and what renders its answer.

    Args:
        document: an object with `inputs`. max_inputs: most prompts. random_seed: for requests that name none. adapters: the
            archive's, by name.
    Returns: the request, and its renderer.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    check_keys(document, "inputs", "parameters", "stream")
    prompts, single = read_inputs(document, text_of, max_inputs)
    given = checked_parameters(document.get("parameters"), PARAMETERS)
    stream = document.get("stream", False)
    if not is_bool(stream):
        raise BadRequest(f"'stream' is {kind_of(stream)}; allowed: true or false")
    if stream and not single:
        raise BadRequest("'stream' sends one text; 'inputs' is a list: send a single text, or one request for each")
    return request_for(prompts, given, single=single, stream=stream, random_seed=random_seed, adapters=adapters)


def request_for(
    prompts: Sequence[str],
    given: Mapping[str, Any],
    *,
    single: bool,
    stream: bool = False,
    random_seed: Callable[[], int] = lambda: 0,
    adapters: Sequence[str] = (),
) -> tuple[GenerationRequest, "Renderer"]:
    """The request for the continuations of `prompts` under checked parameters `given`, and what renders its answer."""
    sampled = any(name in given for name in ("temperature", "top_p", "top_k"))
    details = given.get("details", False)
    request = GenerationRequest(
        prompts=tuple(prompts),
        places=("the prompt",) if single else tuple(f"inputs[{index}]" for index in range(len(prompts))),
        sampling=read_sampling(
            given,
            tokens=given.get("max_new_tokens"),
            sample=given.get("do_sample", sampled),
            logprobs=details,
            random_seed=random_seed,
        ),
        default_new_tokens=DEFAULT_NEW_TOKENS,
        stops=read_stops(given),
        stream=stream,
        max_time=given.get("max_time"),
        grammar=read_grammar(given),
        adapter=adapters_.by_parameter(given, adapters),
    )
    full = tuple(prompts) if given.get("return_full_text", True) else ("",) * len(prompts)
    return request, Renderer(full, single, details)


@dataclass
class Renderer:
    """The answer to a request for text.

    before: what stands before each continuation, the prompt or nothing. single: one text was sent bare.
    details: whether tokens and log-probabilities are told.
    """

    before: tuple[str, ...]
    single: bool
    details: bool
    _told: int = field(default=0, init=False)

    def whole(self, found: Sequence[Continuation]) -> Any:
        """[{"generated_text": …}] for a bare prompt, a list of such lists for a list."""
        answers = [[self._generated(job, before)] for job, before in zip(found, self.before, strict=True)]
        return render(answers, self.single)

    def piece(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """One event a step: the newest token, with all text that became certain with it."""
        new, self._told = found.ids[self._told :], len(found.ids)
        if not new and not text:
            return b""
        return event({"index": self._told, "token": _token(found, text), "generated_text": None, "details": None})

    def ending(self, found: Continuation, text: str, index: int = 0) -> bytes:
        """The event that holds the whole text and why it ended."""
        return event(
            {
                "index": len(found.ids),
                # Behind the end token, which is no part of the text, there is none to name.
                "token": _token(found, text) if len(found.ids) > self._told else {**_NO_TOKEN, "text": text},
                "generated_text": self.before[0] + found.text,
                "details": _details(found),
            }
        )

    def closing(self, found: Sequence[Continuation]) -> bytes:
        """Nothing: a stream has one text."""
        return b""

    def _generated(self, found: Continuation, before: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"generated_text": before + found.text}
        if self.details:
            logprobs: Sequence[float | None] = found.logprobs or [None] * len(found.ids)
            tokens = [
                {"id": token, "logprob": value if value is None else round(value, 6)}
                for token, value in zip(found.ids, logprobs, strict=True)
            ]
            answer["details"] = _details(found) | {"tokens": tokens}
        return answer


def _details(found: Continuation) -> dict[str, Any]:
    sampling = found.sampling
    return {
        "finish_reason": REASONS[found.finish or LENGTH],
        "generated_tokens": len(found.ids),
        "prompt_tokens": len(found.prompt),
        "seed": sampling.seed if sampling.do_sample else None,
    }


def _token(found: Continuation, text: str) -> dict[str, Any]:
    logprob = round(found.logprobs[-1], 6) if found.logprobs else None
    return {"id": found.ids[-1], "text": text, "logprob": logprob, "special": False}


__all__ = ["DEFAULT_NEW_TOKENS", "PARAMETERS", "Renderer", "parse", "recognises", "request_for"]
