"""OpenAI's form for text: completions ({"prompt": …}) and chats ({"messages": […]}), whole and as server-sent events.

Source: OpenAI's API reference, «Completions» and «Chat completions».
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, checked_parameters, checked_text, is_bool, kind_of, quoted
from handlers.protocols.continuation import GenerationRequest
from handlers.protocols.openai.answers import ChatRenderer, CompletionRenderer, Renderer
from handlers.protocols.sampling import BOOL, SAMPLING_PARAMETERS, TOKENS, read_sampling, read_stops

Chat = Callable[[Sequence[Mapping[str, Any]]], str]

MAX_MESSAGES = 1000
DEFAULT_COMPLETION_TOKENS = 16  # a chat's answer is as long as there is room
PARAMETERS: dict[str, Parameter] = {
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    **SAMPLING_PARAMETERS,
    "n": Parameter(lambda value: value == 1 and not isinstance(value, bool), "1"),
    "stream": BOOL,
    "stream_options": Parameter(
        lambda v: isinstance(v, dict) and set(v) <= {"include_usage"} and all(map(is_bool, v.values())),
        '{"include_usage": true or false}',
    ),
    "model": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing: the URL names the model"),
    "user": Parameter(lambda value: isinstance(value, str), "a text, which changes nothing"),
}


def recognises(document: Mapping[str, Any]) -> bool:
    """Whether a request's JSON object is in this form."""
    return "messages" in document or "prompt" in document


def parse(
    document: Mapping[str, Any], *, chat: Chat | None, model: str, random_seed: Callable[[], int]
) -> tuple[GenerationRequest, Renderer]:
    """A completion or a chat, and what renders its answer.

    Args:
        document: an object with either `prompt` or `messages`. chat: messages → prompt, None where the model has no chat
            template. model: the name that answers repeat. random_seed: for requests that name none.
    Returns: the request, and its renderer.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    is_chat = "messages" in document
    form = "messages" if is_chat else "prompt"
    # null is what OpenAI's clients send for what was not set.
    named = {name: value for name, value in document.items() if name != form and value is not None}
    given = checked_parameters(named, PARAMETERS)
    prompt = _chat_prompt(document[form], chat) if is_chat else _completion_prompt(document[form])
    request = GenerationRequest(
        prompts=(prompt,),
        places=("the prompt",),
        # OpenAI's default temperature is 1.
        sampling=read_sampling(
            {"temperature": 1.0, **given},
            tokens=given.get("max_completion_tokens", given.get("max_tokens")),
            sample=True,
            logprobs=False,
            random_seed=random_seed,
        ),
        default_new_tokens=None if is_chat else DEFAULT_COMPLETION_TOKENS,
        special_tokens=not is_chat,
        stops=read_stops(given),
        stream=given.get("stream", False),
    )
    usage = given.get("stream_options", {}).get("include_usage", False)
    return request, (ChatRenderer if is_chat else CompletionRenderer)(model, usage)


def _chat_prompt(messages: Any, chat: Chat | None) -> str:
    if chat is None:
        raise BadRequest("this model has no chat template: send 'prompt' or 'inputs' with the whole text")
    return checked_text(chat(_messages(messages)), "the rendered messages")


def _completion_prompt(prompt: Any) -> str:
    if isinstance(prompt, list):
        raise BadRequest("'prompt' is a list; a text is expected (a list of texts can be sent as 'inputs')")
    return checked_text(prompt, "prompt")


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
