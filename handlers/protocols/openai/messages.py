"""The messages of a chat, checked, in the form that chat templates take.

Source: OpenAI's API reference, «Chat completions»; transformers' documentation, «Writing a chat template».
"""

import json
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import kind_of, quoted

MAX_MESSAGES = 1000
_KEYS = ("role", "content", "name")
_MORE = {"assistant": ("tool_calls",), "tool": ("tool_call_id",)}
_ROLES = ("system", "developer", "user", "assistant")


def read_messages(value: Any, tools: bool) -> list[dict[str, Any]]:
    """The messages; what is null in them counts as not sent.

    Args:
        value: as it was sent. tools: whether the chat template takes calls of functions and what they gave.
    Raises: BadRequest naming the first message that is wrong, and what is allowed.
    """
    if not isinstance(value, list) or not value:
        raise BadRequest(f'\'messages\' is {kind_of(value)}; a list of {{"role": …, "content": …}} is expected')
    if len(value) > MAX_MESSAGES:
        raise BadRequest(f"'messages' has {len(value)} elements; at most {MAX_MESSAGES} are allowed")
    called: dict[str, str] = {}  # the function of each call, by its id
    return [_message(item, f"messages[{index}]", tools, called) for index, item in enumerate(value)]


def _message(item: Any, where: str, tools: bool, called: dict[str, str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRequest(f'{where} is {kind_of(item)}; an object {{"role": …, "content": …}} is expected')
    given = {name: value for name, value in item.items() if value is not None}
    role = given.get("role")
    roles = (*_ROLES, "tool") if tools else _ROLES
    if not isinstance(role, str) or role not in roles:
        shown = json.dumps(role)[:60] if isinstance(role, str) else kind_of(role)
        hint = "; this model's chat template takes no tools" if role == "tool" else ""
        raise BadRequest(f"{where}.role is {shown}; allowed: {', '.join(roles)}{hint}")
    keys = (*_KEYS, *(_MORE.get(role, ()) if tools else ()))
    if unknown := sorted(set(given) - {*keys}):
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: {quoted([*keys])}")
    calls = _calls(given["tool_calls"], f"{where}.tool_calls", called) if given.get("tool_calls") else []
    # A message that only calls has no text of its own.
    content = "" if calls and "content" not in given else _content(given.get("content"), f"{where}.content")
    found: dict[str, Any] = {"role": role, "content": content}
    if isinstance(given.get("name"), str):
        found["name"] = given["name"]
    if calls:
        found["tool_calls"] = calls
    if role == "tool":
        name = given.get("tool_call_id")
        if not isinstance(name, str):
            raise BadRequest(f"{where}.tool_call_id is {kind_of(name)}; the id of the call that it answers is expected")
        found["tool_call_id"] = name
        if name in called:  # some templates say it
            found.setdefault("name", called[name])
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):  # OpenAI's list of parts
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise BadRequest(f'{where} has parts that are no text; allowed: {{"type": "text", "text": …}}')
        content = "".join(part for part in parts if part)
    if not isinstance(content, str):
        raise BadRequest(f"{where} is {kind_of(content)}; a text is expected")
    return content


def _calls(value: Any, where: str, called: dict[str, str]) -> list[dict[str, Any]]:
    """Calls of functions, their arguments as objects: templates write them in the model's own way."""
    if not isinstance(value, list):
        raise BadRequest(f"{where} is {kind_of(value)}; a list of calls is expected")
    found = []
    for index, call in enumerate(value):
        place = f"{where}[{index}]"
        function: Any = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(call.get("id"), str):
            shape = '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}'
            raise BadRequest(f"{place} is no call of a function; allowed: {shape}")
        arguments = function.get("arguments", "{}")
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{place}.function.arguments is no JSON; a JSON object as a text is expected") from error
        if not isinstance(arguments, dict):
            raise BadRequest(f"{place}.function.arguments is {kind_of(arguments)}; a JSON object as a text is expected")
        called[call["id"]] = name
        found.append({"id": call["id"], "type": "function", "function": {"name": name, "arguments": arguments}})
    return found
