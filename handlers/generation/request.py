"""What a request for text may be: Hugging Face's form, or OpenAI's for completions and chats, under the same URL."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from handlers.errors import BadRequest
from handlers.generation.backend import MIN_TEMPERATURE, Sampling
from handlers.protocols.payload import (
    Parameter,
    checked_parameters,
    checked_text,
    is_bool,
    is_positive_int,
    kind_of,
    quoted,
    read_document,
)

ALLOWED = (
    'allowed: {"inputs": "text" or ["text", …], "parameters": {…}}, {"messages": [{"role": …, "content": …}, …]}, '
    '{"prompt": "text"}, or plain text'
)
HF, COMPLETION, CHAT = "huggingface", "completion", "chat"
MAX_MESSAGES = 1000
MAX_STOPS = 16
SEEDS = 2**63


@dataclass(frozen=True)
class GenerationRequest:
    """style: HF, COMPLETION or CHAT. prompts: texts; for CHAT one, rendered, which has its special tokens already.

    sampling: with max_new_tokens 0 where the request does not say. max_time: seconds, None: the archive's own limit
    """

    style: str
    prompts: tuple[str, ...]
    single: bool
    sampling: Sampling
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage_chunk: bool = False
    full_text: bool = True
    details: bool = False
    max_time: float | None = None


def _number(least: float, most: float, open_end: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        return fits and (least < value <= most if open_end else least <= value <= most)

    return check


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SEEDS


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= MAX_STOPS and all(isinstance(t, str) and t for t in texts)


_STOP = Parameter(_is_stop, f"a text, or a list of up to {MAX_STOPS} texts, none empty")
_TEMPERATURE = Parameter(_number(0, 100), "a number from 0 (always the likeliest token) to 100")
_TOP_P = Parameter(_number(0, 1, open_end=True), "a number above 0, up to 1")
_TOP_K = Parameter(
    lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**31, "a whole number from 0 (all)"
)
_REPETITION = Parameter(_number(0, 100, open_end=True), "a number above 0, up to 100; 1 changes nothing")
_PENALTY = Parameter(_number(-2, 2), "a number from -2 to 2")
_SEED = Parameter(_is_seed, "a whole number from 0 to 2^63 - 1")
_TOKENS = Parameter(is_positive_int, "a whole number from 1")
_BOOL = Parameter(is_bool, "true or false")
_TIME = Parameter(_number(0, 1e6, open_end=True), "seconds, a number above 0")

_SAMPLING: dict[str, Parameter] = {
    "temperature": _TEMPERATURE,
    "top_p": _TOP_P,
    "top_k": _TOP_K,
    "repetition_penalty": _REPETITION,
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "stop": _STOP,
    "seed": _SEED,
}
HF_PARAMETERS: dict[str, Parameter] = {
    "max_new_tokens": _TOKENS,
    "do_sample": _BOOL,
    **_SAMPLING,
    "return_full_text": _BOOL,
    "details": _BOOL,
    "max_time": _TIME,
}
OPENAI_PARAMETERS: dict[str, Parameter] = {
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    **_SAMPLING,
    "n": Parameter(lambda value: value == 1 and not isinstance(value, bool), "1"),
    "stream": _BOOL,
    "stream_options": Parameter(
        lambda v: isinstance(v, dict) and set(v) <= {"include_usage"} and all(map(is_bool, v.values())),
        '{"include_usage": true or false}',
    ),
    "model": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing: the URL names the model"),
    "user": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
}


def parse_generation(
    row: Mapping[str, Any],
    headers: Mapping[str, Any],
    *,
    max_inputs: int,
    render: Callable[[Sequence[Mapping[str, Any]]], str] | None,
    random_seed: Callable[[], int],
) -> GenerationRequest:
    """One request as TorchServe hands it over. BadRequest says what is wrong and what is allowed.

    render: messages → prompt; None where the model has no chat template. random_seed: for requests that name none
    """
    document = read_document(row, headers, ALLOWED)
    if not isinstance(document, dict):
        raise BadRequest(f"the JSON body is {kind_of(document)}, an object is expected; {ALLOWED}")
    forms = [name for name in ("inputs", "messages", "prompt") if name in document]
    if len(forms) != 1:
        found = f"both {quoted(forms)}" if forms else "neither 'inputs' nor 'messages' nor 'prompt'"
        raise BadRequest(f"the body has {found}; {ALLOWED}")
    if forms == ["inputs"]:
        return _huggingface(document, max_inputs, random_seed)
    return _openai(document, forms[0], render, random_seed)


def _huggingface(document: dict[str, Any], max_inputs: int, random_seed: Callable[[], int]) -> GenerationRequest:
    unknown = sorted(set(document) - {"inputs", "parameters", "stream"})
    if unknown:
        raise BadRequest(f"unknown key {quoted(unknown)} in the body; allowed: 'inputs', 'parameters', 'stream'")
    inputs = document["inputs"]
    single = not isinstance(inputs, list)
    texts = [inputs] if single else inputs
    if not texts:
        raise BadRequest(f"'inputs' is an empty list; send 1 to {max_inputs} inputs")
    if len(texts) > max_inputs:
        raise BadRequest(f"'inputs' has {len(texts)} elements; at most {max_inputs} are allowed in one request")
    prompts = tuple(checked_text(text, "inputs" if single else f"inputs[{i}]") for i, text in enumerate(texts))
    given = checked_parameters(document.get("parameters"), HF_PARAMETERS)
    stream = document.get("stream", False)
    if not is_bool(stream):
        raise BadRequest(f"'stream' is {kind_of(stream)}; allowed: true or false")
    if stream and not single:
        raise BadRequest("'stream' sends one text; 'inputs' is a list: send a single text, or one request for each")
    sampled = any(name in given for name in ("temperature", "top_p", "top_k"))
    return GenerationRequest(
        style=HF,
        prompts=prompts,
        single=single,
        sampling=_sampling(given, given.get("max_new_tokens"), given.get("do_sample", sampled), random_seed),
        stops=_stops(given),
        stream=stream,
        full_text=given.get("return_full_text", True),
        details=given.get("details", False),
        max_time=given.get("max_time"),
    )


def _openai(
    document: dict[str, Any],
    form: str,
    render: Callable[[Sequence[Mapping[str, Any]]], str] | None,
    random_seed: Callable[[], int],
) -> GenerationRequest:
    # null is what OpenAI's clients send for what was not set.
    named = {name: value for name, value in document.items() if name != form and value is not None}
    given = checked_parameters(named, OPENAI_PARAMETERS)
    if form == "messages":
        if render is None:
            raise BadRequest("this model has no chat template: send 'prompt' or 'inputs' with the whole text")
        prompt = render(_messages(document["messages"]))
        checked_text(prompt, "the rendered messages")
    else:
        if isinstance(document["prompt"], list):
            raise BadRequest("'prompt' is a list; a text is expected (a list of texts can be sent as 'inputs')")
        prompt = checked_text(document["prompt"], "prompt")
    tokens = given.get("max_completion_tokens", given.get("max_tokens"))
    return GenerationRequest(
        style=CHAT if form == "messages" else COMPLETION,
        prompts=(prompt,),
        single=True,
        # OpenAI's default temperature is 1.
        sampling=_sampling({"temperature": 1.0, **given}, tokens, True, random_seed),
        stops=_stops(given),
        stream=given.get("stream", False),
        usage_chunk=given.get("stream_options", {}).get("include_usage", False),
        full_text=False,
    )


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRequest(f'\'messages\' is {kind_of(value)}; a list of {{"role": …, "content": …}} is expected')
    if len(value) > MAX_MESSAGES:
        raise BadRequest(f"'messages' has {len(value)} elements; at most {MAX_MESSAGES} are allowed")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRequest(f'{where} is {kind_of(item)}; an object {{"role": …, "content": …}} is expected')
    unknown = sorted(set(item) - {"role", "content", "name"})
    if unknown:
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: 'role', 'content', 'name'")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in ("system", "developer", "user", "assistant"):
        shown = json.dumps(role)[:60] if isinstance(role, str) else kind_of(role)
        raise BadRequest(f"{where}.role is {shown}; allowed: system, developer, user, assistant")
    if isinstance(content, list):  # OpenAI's list of parts
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise BadRequest(f'{where}.content has parts that are no text; allowed: {{"type": "text", "text": …}}')
        content = "".join(part for part in parts if part)
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content is {kind_of(content)}; a text is expected")
    return {"role": role, "content": content} | ({"name": item["name"]} if isinstance(item.get("name"), str) else {})


def _sampling(
    given: Mapping[str, Any], tokens: int | None, sample: bool, random_seed: Callable[[], int]
) -> Sampling:  # fmt: skip
    kept = {
        name: given[name]
        for name in ("top_p", "top_k", "repetition_penalty", "frequency_penalty", "presence_penalty")
        if name in given
    }
    temperature = given.get("temperature", 1.0)
    found = Sampling(max_new_tokens=tokens or 0, **kept)
    if not sample or temperature < MIN_TEMPERATURE:
        return found
    seed = given["seed"] if "seed" in given else random_seed()
    return replace(found, do_sample=True, temperature=float(temperature), seed=seed)


def _stops(given: Mapping[str, Any]) -> tuple[str, ...]:
    stop = given.get("stop", [])
    return (stop,) if isinstance(stop, str) else tuple(stop)
