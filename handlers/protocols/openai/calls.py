"""How models write that a function is to be called, and which calls a text holds.

Source: the chat templates of Hermes and Qwen (<tool_call>), Mistral ([TOOL_CALLS]) and Llama 3 (bare JSON); OpenAI's API
reference, «Function calling».
"""

import json
import re
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """arguments: a JSON object as text; of one that is not written to its end, as far as it is."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallForm:
    """How a family writes calls.

    begin: stands before them. end: stands behind each; "" where there is no such mark. lead: what a prompt ends in where a
    call has to come. key: of the arguments. bare: the whole text is calls, without a mark or with `begin`.
    id_size: characters of a call's name in the conversation, where templates ask for so many.
    """

    begin: str
    end: str
    lead: str
    key: str = "arguments"
    bare: bool = False
    id_size: int | None = None

    def new_id(self) -> str:
        """What a conversation names a call by."""
        name = uuid.uuid4().hex
        return f"call_{name[:24]}" if self.id_size is None else name[: self.id_size]

    def opening(self, name: str) -> str:
        """What a call of a function begins with, up to its arguments."""
        return f'{self.lead}{{"name": "{name}", "{self.key}": '


_HERMES = CallForm("<tool_call>", "</tool_call>", "<tool_call>\n")
_MISTRAL = CallForm("[TOOL_CALLS]", "", "[TOOL_CALLS][", id_size=9)
_LLAMA = CallForm("<|python_tag|>", "", "", key="parameters", bare=True)
_OTHER = CallForm("", "", "", bare=True)


def form_of(template: str) -> CallForm | None:
    """How the model of a chat template (Jinja text) writes calls; None where the template does not mention tools."""
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template:
        return _HERMES
    if "[TOOL_CALLS]" in template:
        return _MISTRAL
    return _LLAMA if "<|python_tag|>" in template or '"parameters": ' in template else _OTHER


@dataclass(frozen=True)
class CallReader:
    """Tells a text's calls from the rest of it.

    form: the family's. names: of the functions there are. forced: None where the model is free to call; "" where it had to
    call one; the name of the one that it had to. several: whether more than one call is told.
    """

    form: CallForm
    names: Collection[str]
    forced: str | None = None
    several: bool = True

    def read(self, text: str, done: bool) -> tuple[str, list[Call]]:
        """What is certain of a text by now: (what is no call, the calls). Both only ever grow with the text.

        Args:
            text: from its beginning. done: nothing more comes; what is no whole call then is text.
        """
        if self.forced is not None:
            return "", self._forced(text)
        content, calls = self._bare(text, done) if self.form.bare else self._marked(text, done)
        if not done:
            content = content[: len(content) - _overlap(content, self.form.begin)]
        if calls or not done:  # blanks before a call are no part of the answer
            content = content.rstrip()
        return content, calls if self.several else calls[:1]

    def _forced(self, text: str) -> list[Call]:
        if self.forced:
            return [Call(self.forced, text)]
        found = re.match(rf'\s*{{ ?"name" ?: ?"([^"]*)" ?, ?"{self.form.key}" ?: ?(.*)', text, re.DOTALL)
        if found is None:
            return []
        rest = found[2]
        with suppress(ValueError, RecursionError):  # not written to their end: all that there is belongs to them
            rest = rest[: _DECODER.raw_decode(rest)[1]]
        return [Call(found[1], rest)]

    def _marked(self, text: str, done: bool) -> tuple[str, list[Call]]:
        begin, end = self.form.begin, self.form.end
        content, *parts = text.split(begin)
        calls: list[Call] = []
        for part in parts:
            inner, closed, behind = part.partition(end) if end else (part, "", "")
            if not closed and not done:
                break
            found = self._calls(inner)
            calls += found
            content += behind if found else begin + part
        return content, calls

    def _bare(self, text: str, done: bool) -> tuple[str, list[Call]]:
        """Either all of it or nothing is calls."""
        begin, start = self.form.begin, text.lstrip()
        if not done:
            held = not start or start.startswith("{") or start.startswith(begin or "{") or begin.startswith(start)
            return ("" if held else text), []
        calls = self._calls(start.removeprefix(begin))
        return ("" if calls else text), calls

    def _calls(self, text: str) -> list[Call]:
        """The calls that a text consists of: a list, or objects behind each other; none where it is anything else."""
        if named := re.fullmatch(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(\{.*)", text, re.DOTALL):
            text = f'{{"name": "{named[1]}", "arguments": {named[2]}}}'  # Mistral's second form
        found: list[Any] = []
        place = 0
        while rest := text[place:].lstrip(" \t\r\n;,"):
            try:
                value, size = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            found += value if isinstance(value, list) else [value]
            place = len(text) - len(rest) + size
        calls = [self._call(one) for one in found]
        return [call for call in calls if call is not None] if None not in calls else []

    def _call(self, value: Any) -> Call | None:
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or name not in self.names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            told = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            told.encode()
        except (ValueError, RecursionError):
            return None
        return Call(name, told) if isinstance(arguments, dict) else None


def _overlap(text: str, mark: str) -> int:
    """How much of `mark` the text ends in."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)
