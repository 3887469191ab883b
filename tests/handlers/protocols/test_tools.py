"""Functions that a chat may call: what is taken, what the template gets, and which calls a text holds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from asked_for_text import USER, ask, read, refusal
from mutated import mutated

from handlers.errors import BadRequest
from handlers.generation.engine import Job
from handlers.protocols.continuation import LENGTH, STOP, Sampling
from handlers.protocols.grammar import SCHEMA, Grammar
from handlers.protocols.openai.calls import Call, CallForm, CallReader, form_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "$defs": {"city": {"type": "string"}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
# What the templates of these families write; how they go through messages does not matter here.
HERMES = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>\\n{...}\\n</tool_call>"
MISTRAL = "[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS] [TOOL_CALLS]"
LLAMA = """{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}<|python_tag|>"""
OTHER = "{{ tools | tojson }}"
FORMS: dict[str, Any] = {
    name: form_of(text) for name, text in (("hermes", HERMES), ("mistral", MISTRAL), ("llama", LLAMA), ("other", OTHER))
}


def render(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
    return f"{json.dumps([*messages])} {json.dumps(tools)} "


def chat(form: str | None = "hermes", **more: Any) -> Any:
    calls = None if form is None else FORMS[form]
    return read({"messages": [USER], "temperature": 0, **more}, chat=render, calls=calls)


def reader(form: str, forced: str | None = None, several: bool = True) -> CallReader:
    return CallReader(FORMS[form], {"weather", "now"}, forced, several)


# ---- requests ---------------------------------------------------------------------------------------------------------


def test_which_form_a_template_has() -> None:
    assert form_of("{{ messages }} tool") is None
    assert [form.key for form in FORMS.values()] == ["arguments", "arguments", "parameters", "arguments"]
    assert [form.begin for form in FORMS.values()] == ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", ""]
    assert len(FORMS["mistral"].new_id()) == 9 and FORMS["hermes"].new_id().startswith("call_")


def test_the_template_gets_the_tools() -> None:
    request, renderer = chat(tools=[WEATHER, NOW])
    assert request.prompts[0].endswith(f" {json.dumps([WEATHER, NOW])} ")
    assert (request.grammar, request.keep_special) == (None, True)
    assert renderer.reader == CallReader(FORMS["hermes"], frozenset({"weather", "now"}))
    assert chat(tools=[NOW], parallel_tool_calls=False)[1].reader.several is False
    for more in ({}, {"tools": []}, {"tools": [NOW], "tool_choice": "none"}, {"tool_choice": "auto"}):
        request, renderer = chat(**more)
        assert request.prompts[0].endswith(" null ") and renderer.reader is None and not request.keep_special


def test_a_call_that_has_to_come_is_constrained_and_begun() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    arguments = json.dumps(WEATHER["function"]["parameters"], separators=(",", ":"))  # type: ignore[index]
    begun = {
        "hermes": '<tool_call>\n{"name": "weather", "arguments": ',
        "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": ',
        "llama": '{"name": "weather", "parameters": ',
        "other": '{"name": "weather", "arguments": ',
    }
    for form, lead in begun.items():
        request, renderer = chat(form, tools=[WEATHER, NOW], tool_choice=named)
        assert request.prompts[0].endswith("] " + lead) and not request.keep_special
        assert request.grammar == Grammar(SCHEMA, arguments) and renderer.reader.forced == "weather"
    request, renderer = chat(tools=[WEATHER, NOW], tool_choice="required")
    assert request.prompts[0].endswith("] <tool_call>\n") and renderer.reader.forced == ""
    schema = json.loads(request.grammar.text)
    assert schema["$defs"]["f0"]["properties"] == {"city": {"$ref": "#/$defs/f0/$defs/city"}}
    assert schema["$defs"]["f1"] == {"properties": {}, "additionalProperties": False, "type": "object"}
    assert [one["properties"] for one in schema["anyOf"]] == [
        {"name": {"const": "weather"}, "arguments": {"$ref": "#/$defs/f0"}},
        {"name": {"const": "now"}, "arguments": {"$ref": "#/$defs/f1"}},
    ]


def function(**more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f"} | more}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": {}}, "parameter 'tools' is an object; allowed: a list of at most 128 functions"),
        ({"tools": [NOW] * 129}, "parameter 'tools' is a list; allowed: a list of at most 128 functions"),
        ({"tools": [3]}, "tools[0] is no function; allowed: {"),
        ({"tools": [{"type": "web_search"}]}, "tools[0] is no function; allowed: {"),
        ({"tools": [NOW, NOW]}, "'tools' has two functions of one name"),
        ({"tools": function(name="a b")}, 'tools[0].function.name is "a b"; allowed: up to 64 letters'),
        ({"tools": function(name=5)}, "tools[0].function.name is a number; allowed: up to 64 letters"),
        ({"tools": function(name="a" * 65)}, 'tools[0].function.name is "aaaa'),
        ({"tools": function(other=1)}, "tools[0] has the unknown key 'other'; allowed: {"),
        ({"tools": function(description=1)}, "tools[0].function.description is a number; allowed: a text"),
        ({"tools": function(strict="yes")}, "tools[0].function.strict is a string; allowed: true or false"),
        ({"tools": function(parameters=[])}, "tools[0].function.parameters is no JSON schema of an object"),
        (
            {"tools": function(parameters={"type": "string"})},
            "tools[0].function.parameters is no JSON schema of an obj",
        ),
        (
            {"tools": function(parameters={"pattern": "a{9999}"})},
            "the parameters of the function 'f': the pattern repeats",
        ),
        (
            {"tools": [NOW], "tool_choice": "some"},
            '\'tool_choice\' is "some"; allowed: "none", "auto", "required", or {',
        ),
        ({"tools": [NOW], "tool_choice": 3}, "parameter 'tool_choice' is 3; allowed: \"none\""),
        (
            {"tools": [NOW], "tool_choice": {"type": "function"}},
            "'tool_choice' is an object of another form; allowed: ",
        ),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}},
            "'tool_choice' names 'then', which is no function of 'tools': 'now'",
        ),
        ({"tool_choice": "required"}, "'tool_choice' asks for a call and there are no 'tools'"),
        ({"parallel_tool_calls": 1}, "parameter 'parallel_tool_calls' is 1; allowed: true or false"),
        (
            {"tools": [NOW], "response_format": {"type": "json_object"}},
            "the text has to match a grammar, which leaves no",
        ),
        ({"functions": [{"name": "f"}]}, "unknown parameter 'functions'"),
    ],
)
def test_what_is_refused(given, message) -> None:
    assert refusal({"messages": [USER], **given}, calls=FORMS["hermes"]).startswith(message)


def test_a_template_without_tools_refuses_them() -> None:
    said = "this model's chat template does not mention tools: leave 'tools' out"
    for more in ({}, {"tool_choice": "none"}):
        assert refusal({"messages": [USER], "tools": [NOW], **more}) == said
    for message in (
        {"role": "tool", "tool_call_id": "a", "content": "b"},
        {"role": "assistant", "tool_calls": [CALLED]},
    ):
        assert refusal({"messages": [USER, message]}).startswith("messages[1]")


CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


def test_calls_and_what_they_gave_in_messages() -> None:
    heard: list[Any] = []

    def listening(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        heard.extend(messages)
        return "a prompt"

    answer = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    sent = [USER, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALLED]}, answer]
    ask({"messages": sent, "tools": [WEATHER]}, chat=listening, calls=FORMS["hermes"])
    # Templates write arguments by their own rules, of an object; some want the function's name with what it gave.
    called = CALLED | {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
    assert heard == [USER, {"role": "assistant", "content": "", "tool_calls": [called]}, answer | {"name": "weather"}]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id is null; the id of the call"),
        ({"role": "tool", "content": None, "tool_call_id": "a"}, "messages[0].content is null; a text is expected"),
        ({"role": "user", "content": "a", "tool_calls": [CALLED]}, "messages[0] has the unknown key 'tool_calls'"),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content is null; a text is expected"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls is an object; a list of calls"),
        (
            {"role": "assistant", "tool_calls": [{"id": "a"}]},
            "messages[0].tool_calls[0] is no call of a function; allowed",
        ),
        (
            {"role": "assistant", "tool_calls": [CALLED | {"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments is no JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [CALLED | {"function": {"name": "f", "arguments": "[1]"}}]},
            "messages[0].tool_calls[0].function.arguments is a list; a JSON object as a text is expected",
        ),
    ],
)
def test_messages_that_are_refused(message, told) -> None:
    assert refusal({"messages": [message]}, calls=FORMS["hermes"]).startswith(told)


def test_bodies_that_are_changed_are_refused_in_one_sentence() -> None:
    dice = random.Random(5)
    right = {
        "messages": [
            USER,
            {"role": "assistant", "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ],
        "tools": [WEATHER, NOW],
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "parallel_tool_calls": True,
    }
    refused = 0
    for _ in range(1500):
        try:
            document = json.loads(mutated(right, dice))
        except ValueError:
            continue
        if not isinstance(document, dict) or "messages" not in document:
            continue
        try:
            ask(document, chat=render, calls=FORMS["hermes"])
        except BadRequest as error:
            refused += 1
            assert 10 < len(str(error)) < 2500 and "\n" not in str(error)
    assert refused > 500


# ---- the calls of a text ----------------------------------------------------------------------------------------------

RAIN, CLOCK = Call("weather", '{"city": "Köln"}'), Call("now", "{}")
WRITTEN = '{"name": "weather", "arguments": {"city": "Köln"}}'
BOTH = '{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "now", "arguments": {}, "id": "a"}'
TEXTS: list[tuple[str, str, str, list[Call]]] = [  # form, text, what is no call, the calls
    ("hermes", f"<tool_call>\n{WRITTEN}\n</tool_call>", "", [RAIN]),
    ("hermes", f'Well.\n<tool_call>{WRITTEN}</tool_call>\n<tool_call>{{"name": "now"}}', "Well.", [RAIN, CLOCK]),
    ("hermes", f"a <tool_call>{WRITTEN}</tool_call> b <tool_call>x", "a  b <tool_call>x", [RAIN]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}</tool_call>', "", [RAIN]),
    ("mistral", f"[TOOL_CALLS] [{BOTH}]", "", [RAIN, CLOCK]),
    ("mistral", f"Yes. [TOOL_CALLS][{WRITTEN}]", "Yes.", [RAIN]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Köln"}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}', "", [RAIN, CLOCK]),
    ("llama", '{"name": "weather", "parameters": {"city": "Köln"}}', "", [RAIN]),
    ("llama", f'<|python_tag|>{WRITTEN}; {{"name": "now", "parameters": {{}}}}', "", [RAIN, CLOCK]),
    ("other", f" {WRITTEN}\n", "", [RAIN]),
]
NO_CALLS = [
    ("hermes", "no <tool_call>"),
    ("hermes", 'a <tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    ("hermes", 'a <tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": NaN}}'),
    ("hermes", f"{WRITTEN} "),
    ("mistral", "[TOOL_CALLS] none"),
    ("llama", '{"city": "Köln"}'),
    ("llama", 'It is {"name": "now", "parameters": {}}'),
    ("llama", "\n<|python_tag|>print(1)"),
    ("other", "Hello {name}"),
    ("other", ""),
    ("other", "{" * 100_000),
]
TEXTS += [(form, text, text, []) for form, text in NO_CALLS]


@pytest.mark.parametrize(("form", "text", "content", "calls"), TEXTS)
def test_the_calls_of_a_text(form, text, content, calls) -> None:
    assert reader(form).read(text, True) == (content, calls)
    assert reader(form, several=False).read(text, True) == (content, calls[:1])
    # What is told while it is written never has to be taken back.
    before: tuple[str, list[Call]] = ("", [])
    for end in range(min(len(text), 300) + 1):
        told, found = reader(form).read(text[:end], False)
        assert told.startswith(before[0]) and found[: len(before[1])] == before[1]
        assert content.startswith(told) and calls[: len(found)] == found
        before = told, found


def test_a_text_without_calls_is_told_at_once() -> None:
    assert reader("hermes").read("It is <b>", False) == ("It is <b>", [])
    assert reader("hermes").read("It is <to", False) == (
        "It is",
        [],
    )  # it may become a mark, and then blanks are left out
    assert reader("llama").read("It is", False) == ("It is", [])
    assert reader("llama").read(' {"na', False) == ("", [])


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_had_to_come(form) -> None:
    assert reader(form, "weather").read('{"city": "Kö', False) == ("", [Call("weather", '{"city": "Kö')])
    key = FORMS[form].key
    text = f'{{"name": "weather","{key}":{{"city": "}}" }} }}'
    assert reader(form, "").read(text, True) == ("", [Call("weather", '{"city": "}" }')])
    seen = ""
    for end in range(len(text)):
        content, calls = reader(form, "").read(text[:end], False)
        assert content == "" and len(calls) <= 1
        if calls:
            assert calls[0].name == "weather" and calls[0].arguments.startswith(seen)
            seen = calls[0].arguments
    assert seen == '{"city": "}" }'


# ---- answers ----------------------------------------------------------------------------------------------------------


def job(text: str, finish: str | None = STOP) -> Job:
    return Job([1, 2], Sampling(9), ids=[3] * 9, text=text, finish=finish)


def test_a_whole_answer() -> None:
    renderer = chat(tools=[WEATHER, NOW])[1]
    (choice,) = renderer.whole([job(f"Yes.\n<tool_call>{WRITTEN}</tool_call>")])["choices"]
    name = choice["message"]["tool_calls"][0].pop("id")
    assert name.startswith("call_") and len(name) == 29
    told = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    message = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": [told]}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    (choice,) = renderer.whole([job("Yes.")])["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Yes.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    (choice,) = renderer.whole([job(f"<tool_call>{WRITTEN}</tool_call>", LENGTH)])["choices"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "length"


def test_a_stream() -> None:
    renderer = chat(tools=[WEATHER, NOW], tool_choice="required")[1]
    running, told = job("", None), b""
    text = '{"name": "weather", "arguments": {"city": "Köln"}}'
    for end in range(0, len(text) + 1, 7):
        running.text = text[:end]
        told += renderer.piece(running, text[max(0, end - 7) : end])
    running.text, running.finish = text, STOP
    told += renderer.ending(running, text[end:]) + renderer.closing([running])
    events = [json.loads(line[6:]) for line in told.decode().split("\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    first, *others = (delta["tool_calls"][0] for delta in deltas[1:-1])
    assert set(first) == {"index", "id", "type", "function"} and first["index"] == 0
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert all(set(other) == {"index", "function"} and set(other["function"]) == {"arguments"} for other in others)
    assert len(others) > 1 and "".join(one["function"]["arguments"] for one in others) == '{"city": "Köln"}'
    assert [event["choices"][0]["finish_reason"] for event in events][-2:] == [None, "tool_calls"]


def test_forms_are_values() -> None:
    assert FORMS["other"] == CallForm("", "", "", bare=True)
