"""OpenAI's form for text: completions ({"prompt": …}) and chats ({"messages": […]}), whole and as server-sent events.

Source: OpenAI's API reference, «Completions» and «Chat completions».
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from handlers.errors import BadRequest
from handlers.inputs.checks import (
    Parameter,
    checked_parameters,
    checked_text,
    is_bool,
    is_positive_int,
)
from handlers.protocols import grammar as grammars
from handlers.protocols.adapters import by_model
from handlers.protocols.continuation import GenerationRequest
from handlers.protocols.openai import tools as functions
from handlers.protocols.openai.answers import ChatRenderer, CompletionRenderer, Renderer, Spell
from handlers.protocols.openai.calls import CallForm
from handlers.protocols.openai.messages import read_messages
from handlers.protocols.openai.reply import DESCRIBING
from handlers.protocols.sampling import BOOL, SAMPLING_PARAMETERS, TOKENS, number, read_sampling, read_stops


class Chat(Protocol):
    """The model's chat template."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt that asks for the assistant's next message. BadRequest where the template refuses them."""
        ...


MAX_TOPS = 20
MAX_BIASED = 1024
DEFAULT_COMPLETION_TOKENS = 16  # a chat's answer is as long as there is room


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_BIASED
        and all(token.isascii() and token.isdigit() and len(token) < 10 for token in value)
        and all(map(number(-100, 100), value.values()))
    )


PARAMETERS: dict[str, Parameter] = {
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    **SAMPLING_PARAMETERS,
    **DESCRIBING,
    **grammars.OPENAI,
    "n": Parameter(is_positive_int, "a whole number from 1"),
    "logit_bias": Parameter(
        _is_bias, f'an object {{"token id": number from -100 to 100}} with up to {MAX_BIASED} of them'
    ),
    "stream": BOOL,
    "stream_options": Parameter(
        # Obfuscation pads the pieces of a stream; there is none.
        lambda v: (
            isinstance(v, dict) and set(v) <= {"include_usage", "include_obfuscation"} and all(map(is_bool, v.values()))
        ),
        '{"include_usage": true or false, "include_obfuscation": true or false}, of which the latter changes nothing',
    ),
}

_TOPS = Parameter(lambda v: type(v) is int and 0 <= v <= MAX_TOPS, f"a whole number from 0 to {MAX_TOPS}")
# What only one of the two has.
_CHAT: dict[str, Parameter] = {"logprobs": BOOL, "top_logprobs": _TOPS, **functions.PARAMETERS}
_COMPLETION: dict[str, Parameter] = {"logprobs": _TOPS, "echo": BOOL}


def recognises(document: Mapping[str, Any]) -> bool:
    """Whether a request's JSON object is in this form."""
    return "messages" in document or "prompt" in document


def parse(
    document: Mapping[str, Any],
    *,
    chat: Chat | None,
    calls: CallForm | None = None,
    model: str,
    random_seed: Callable[[], int],
    max_inputs: int = 1,
    spell: Spell | None = None,
    adapters: Sequence[str] = (),
) -> tuple[GenerationRequest, Renderer]:
    """A completion or a chat, and what renders its answer.

    Args:
        document: an object with either `prompt` or `messages`. chat: messages → prompt, None where the model has no chat
            template. calls: how the model writes calls of functions, None where its template does not mention tools.
            model: the archive's name, which answers repeat. random_seed: for requests that name none.
        max_inputs: most texts of one request. spell: a token id to its text, None where nothing is told of tokens.
        adapters: the archive's, by name: `model` chooses one of them.
    Returns: the request, and its renderer.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    is_chat = "messages" in document
    form = "messages" if is_chat else "prompt"
    # null is what OpenAI's clients send for what was not set.
    named = {name: value for name, value in document.items() if name != form and value is not None}
    given = checked_parameters(named, PARAMETERS | (_CHAT if is_chat else _COMPLETION))
    tools = functions.read_tools(given, calls) if is_chat and chat is not None else None
    prompts = (
        [_chat_prompt(document[form], chat, calls is not None, tools)]
        if is_chat
        else _completion_prompts(document[form])
    )
    grammar = grammars.read_grammar(given)
    if tools is not None and grammar is not None:
        raise BadRequest(
            "the text has to match a grammar, which leaves no room for calls: send it, or 'tools', not both"
        )
    choices = given.get("n", 1)
    if (texts := len(prompts) * choices) > max_inputs:
        raise BadRequest(f"{len(prompts)} prompts with n {choices} are {texts} texts; at most {max_inputs} are allowed")
    every = [prompt for prompt in prompts for _ in range(choices)]
    # A chat asks for them with true, a completion with their number.
    logprobs = given.get("logprobs") is not None and given["logprobs"] is not False
    if "top_logprobs" in given and not logprobs:
        raise BadRequest("'top_logprobs' is given without 'logprobs': true")
    tops = given.get("top_logprobs" if is_chat else "logprobs", 0)
    request = GenerationRequest(
        prompts=tuple(every),
        places=tuple(
            "the prompt" if len(prompts) == 1 else f"prompt[{index // choices}]" for index in range(len(every))
        ),
        # OpenAI's default temperature is 1.
        sampling=replace(
            read_sampling(
                {"temperature": 1.0, **given},
                tokens=given.get("max_completion_tokens", given.get("max_tokens")),
                sample=True,
                logprobs=logprobs,
                random_seed=random_seed,
            ),
            top_logprobs=tops,
            bias=tuple((int(token), float(value)) for token, value in given.get("logit_bias", {}).items()),
        ),
        default_new_tokens=None if is_chat else DEFAULT_COMPLETION_TOKENS,
        special_tokens=not is_chat,
        stops=read_stops(given),
        stream=given.get("stream", False),
        grammar=grammar if tools is None else tools.grammar,
        # The marks of a call are special tokens of some models.
        keep_special=tools is not None and tools.grammar is None,
        adapter=(adapter := by_model(given, adapters, model)),
    )
    usage = given.get("stream_options", {}).get("include_usage", False)
    told = spell if logprobs else None
    model = adapters[adapter - 1] if adapter else model
    if is_chat:
        return request, ChatRenderer(model, usage, choices, told, reader=None if tools is None else tools.reader)
    before = _echoed(every, spell) if given.get("echo") else ()
    return request, CompletionRenderer(model, usage, choices, told, before=before)


def _chat_prompt(messages: Any, chat: Chat | None, takes_tools: bool, tools: functions.Tools | None) -> str:
    if chat is None:
        raise BadRequest("this model has no chat template: send 'prompt' or 'inputs' with the whole text")
    found = read_messages(messages, takes_tools)
    prompt = chat(found) if tools is None else chat(found, tools.listed) + tools.lead
    return checked_text(prompt, "the rendered messages")


def _completion_prompts(prompt: Any) -> list[str | tuple[int, ...]]:
    """A text, token ids, or a list of either."""
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return [_ids(prompt, "prompt")]
    if not isinstance(prompt, list):
        return [checked_text(prompt, "prompt")]
    if not prompt:
        raise BadRequest("'prompt' is an empty list; a text, a list of texts, or token ids are expected")
    return [
        _ids(one, f"prompt[{index}]") if isinstance(one, list) else checked_text(one, f"prompt[{index}]")
        for index, one in enumerate(prompt)
    ]


def _ids(value: list[Any], where: str) -> tuple[int, ...]:
    if not value or not all(type(one) is int and one >= 0 for one in value):
        raise BadRequest(f"{where} is no list of token ids: whole numbers from 0")
    return tuple(value)


def _echoed(prompts: Sequence[str | tuple[int, ...]], spell: Spell | None) -> list[str]:
    if spell is None and any(not isinstance(one, str) for one in prompts):
        raise BadRequest("'echo' is true and 'prompt' has token ids: send the text")
    return [one if isinstance(one, str) else "".join(map(spell or str, one)) for one in prompts]
