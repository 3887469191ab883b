"""Texts that have to match a grammar, from a tiny llama: they do, beside free ones, drawn or not, whole or streamed."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generating import SERVING, TASK, ask_all, asked, one, told_events
from task_models import load_model

from archiver.export.torch_packed import export_packed
from archiver.packaging.entry import make_handler
from benchmarks.language.schemas import bounded, fits
from handlers.generation import grammar as grammars
from handlers.inputs.text import Encoder, Text
from handlers.protocols.grammar import of_regex
from handlers.tasks.text.generation import TextGenerationHandler

ROOM = 512
TEMPLATE = """{{ bos_token }}{% if tools %}{{ tools | tojson }} call: <tool_call> {% endif %}
{%- for m in messages %}{{ m.role }} {{ m.content }}
{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %} .{% endfor %}"""
CHAT = {"template": TEMPLATE, "tokens": {"bos_token": "<s>"}}
LIGHT = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "attic"]}, "watt": {"type": "integer", "minimum": 0, "maximum": 60}},
    "required": ["room", "watt"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "light", "description": "switch", "parameters": LIGHT}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def writer(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TextGenerationHandler]:
    folder = tmp_path_factory.mktemp("exported")
    source = tiny_model("llama", TASK, max_position_embeddings=ROOM)
    export_packed(load_model(source, TASK), None, folder)
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (folder / "requirements.txt").write_text("llguidance>=1.9\n")
    handler: Any = make_handler(
        "handlers.tasks.text.generation:TextGenerationHandler", "handlers.runtimes.torch_generation:TorchBackend"
    )
    session = SERVING["session"] | {"max_running": 25}
    more = {"session": session, "max_inputs": 8, "max_length": ROOM, "max_queue": 200, "chat": CHAT}
    handler.serving = SERVING | more
    handler.input = Text(Encoder(folder / "tokenizer.json", max_length=ROOM, pad_id=1))
    handler.load(folder, threads=1)
    yield handler
    handler.engine.close()


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "this film"}], "temperature": 0, **more}


def by_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}, **more)


def choices(told: Any) -> list[tuple[str, str]]:
    assert told.status == 200, told.body
    return [(one["message"]["content"], one["finish_reason"]) for one in told.json["choices"]]


def test_two_hundred_schemas(writer) -> None:
    dice = random.Random(0)
    schemas = [bounded(dice) for _ in range(200)]
    drawn = {"temperature": 1.5, "top_p": 0.95}
    asked_for = [
        by_schema(schema, seed=number, **(drawn if number % 2 else {})) for number, schema in enumerate(schemas)
    ]
    for start in range(0, 200, 100):
        told = ask_all(writer, *asked_for[start : start + 100])
        for schema, answer in zip(schemas[start : start + 100], told, strict=True):
            ((text, reason),) = choices(answer)
            assert reason == "stop", (schema, text)
            assert fits(json.loads(text), schema), (schema, text)
    assert len(writer._grammars._known) == grammars.KEPT


@pytest.mark.parametrize(
    "pattern", [r"[a-c]{3,5} \d+\.", r"(yes|no), (sir|madam)!?", r"[^a-z]{4}", "a/b\\nc\\\\\nd", "é+ 😀"]
)
def test_regular_expressions(writer, pattern) -> None:
    rule = re.compile(pattern, re.ASCII)  # \d is 0 to 9
    for more in ({}, {"temperature": 2.0, "seed": 5, "n": 3}, {"frequency_penalty": 2, "logprobs": True}):
        for text, reason in choices(one(writer, chat(guided_regex=pattern, max_tokens=60, **more))):
            assert reason == "length" or rule.fullmatch(text), text
    grammar = {"type": "regex", "value": pattern}
    told = one(writer, asked("this film", 60, grammar=grammar, return_full_text=False, details=True)).json[0]
    assert told["details"]["finish_reason"] == "length" or rule.fullmatch(told["generated_text"])


def test_a_text_ends_where_nothing_can_follow_and_where_the_model_ends_it(writer) -> None:
    told = one(writer, chat(guided_choice=["good", "great plot", "\n"], logprobs=True)).json
    (choice,) = told["choices"]
    assert choice["message"]["content"] in ("good", "great plot", "\n") and choice["finish_reason"] == "stop"
    # The end token is no part of it, and where nothing can follow none is needed.
    assert len(choice["logprobs"]["content"]) == told["usage"]["completion_tokens"]
    exact = len(writer.input.encoder.tokenizer.encode("good", add_special_tokens=False).ids)
    ((text, reason),) = choices(one(writer, chat(guided_regex="good", max_tokens=20)))
    assert (text, reason) == ("good", "stop")
    # With the last token that is allowed it is complete all the same.
    tokens = one(writer, chat(guided_regex="good")).json["usage"]["completion_tokens"]
    assert exact <= tokens
    assert choices(one(writer, chat(guided_regex="good", max_tokens=tokens))) == [("good", "stop")]
    # It may end behind any number of them; only the model's end token can say so before the room is used up.
    bias = {"2": 100}
    assert choices(one(writer, chat(guided_regex="(ab){2,}", logit_bias=bias))) == [("abab", "stop")]


def test_beside_free_texts(writer, sentences) -> None:
    free = [asked(text, 40, return_full_text=False) for text in sentences]
    held = [by_schema(bounded(random.Random(number)), seed=number, temperature=number % 2) for number in range(6)]
    alone = [one(writer, document).json for document in [*free, *held]]
    mixed = [document for pair in zip(free, held, strict=True) for document in pair]
    together = [told.json for told in ask_all(writer, *mixed)]
    assert together[::2] == alone[: len(free)]
    texts = [[choice["message"] for choice in told["choices"]] for told in together[1::2]]
    assert texts == [[choice["message"] for choice in told["choices"]] for told in alone[len(free) :]]


def test_streams(writer) -> None:
    document = by_schema(bounded(random.Random(4)), n=2, temperature=1.3, seed=8)
    whole = choices(one(writer, document))
    events = told_events(one(writer, document | {"stream": True}))
    pieces = ["", ""]
    for event in events[:-1]:
        for choice in event["choices"]:
            pieces[choice["index"]] += choice["delta"].get("content", "")
    assert pieces == [text for text, _ in whole] and events[-1] == "[DONE]"
    assert len(set(pieces)) == 2


# ---- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_round_trip(writer) -> None:
    document = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "light"}})
    (choice,) = one(writer, document).json["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"], call["function"]["name"]) == (
        "tool_calls",
        None,
        "light",
    )
    assert fits(json.loads(call["function"]["arguments"]), LIGHT)
    answered = [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "done"}]
    again = chat(tools=TOOLS, max_tokens=8)
    again["messages"] += answered
    told = one(writer, again)
    assert told.status == 200 and told.json["choices"][0]["message"]["content"]
    prompt = writer._chat(again["messages"][:1], TOOLS)
    assert told.json["usage"]["prompt_tokens"] > len(writer.input.encoder.tokenizer.encode(prompt).ids)


def test_a_call_of_any_function(writer) -> None:
    names = set()
    for told in ask_all(
        writer, *(chat(tools=TOOLS, tool_choice="required", temperature=2, seed=i, n=3) for i in range(4))
    ):
        for choice in told.json["choices"]:
            (call,) = choice["message"]["tool_calls"]
            names.add(call["function"]["name"])
            assert choice["finish_reason"] == "tool_calls"
            arguments = json.loads(call["function"]["arguments"])
            assert fits(arguments, LIGHT) if call["function"]["name"] == "light" else arguments == {}
    assert names == {"light", "now"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "light"}}])
def test_a_call_in_a_stream(writer, choice) -> None:
    document = chat(tools=TOOLS, tool_choice=choice, temperature=1.5, seed=2)
    (whole,) = one(writer, document).json["choices"]
    (call,) = whole["message"]["tool_calls"]
    events = told_events(one(writer, document | {"stream": True}))
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    told = [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert [part["index"] for part in told] == [0] * len(told) and len(told) > 2
    assert told[0]["function"] == {"name": call["function"]["name"], "arguments": ""} and told[0]["id"]
    assert "".join(part["function"]["arguments"] for part in told) == call["function"]["arguments"]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_its_length_cuts(writer) -> None:
    named = {"type": "function", "function": {"name": "light"}}
    (choice,) = one(writer, chat(tools=TOOLS, tool_choice=named, max_tokens=2)).json["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["tool_calls"][0]["function"]["arguments"][0] == "{"


def test_a_model_that_is_free_to_call(writer, monkeypatch) -> None:
    """The tiny model calls nothing by itself: it is held to one call here, as one that was taught would write it."""
    (free,) = one(writer, chat(tools=TOOLS, max_tokens=8)).json["choices"]
    assert (
        free["message"]["content"]
        and free["finish_reason"] in ("length", "stop")
        and "tool_calls" not in free["message"]
    )
    written = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    constraint = writer._grammars.compiled(of_regex(re.escape(written), "it"))
    true = writer._jobs

    def held(request: Any) -> Any:
        jobs = true(request)
        for job in jobs:
            job.sampling = replace(job.sampling, constraint=constraint)
        return jobs

    monkeypatch.setattr(writer, "_jobs", held)
    (called,) = one(writer, chat(tools=TOOLS)).json["choices"]
    assert called["finish_reason"] == "tool_calls"
    assert called["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}


# ---- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guided_regex": "(a"}, "the regular expression cannot be followed: unclosed group"),
        (
            {"guided_regex": "(?=a)b"},
            "the regular expression cannot be followed: look-around, including look-ahead and l",
        ),
        ({"guided_regex": "a$b"}, "the regular expression cannot be followed: lookarounds not supported yet; End"),
        ({"guided_json": {"type": "foo"}}, "the JSON schema cannot be followed: Invalid type: foo"),
        ({"guided_json": {"not": {}}}, 'the JSON schema cannot be followed: Unimplemented keys: ["not"]'),
        (
            {"guided_json": {"$ref": "#/$defs/x"}},
            "the JSON schema cannot be followed: Pointer '/$defs/x' does not exist",
        ),
        (
            {"guided_json": {"$ref": "http://x.y/z"}},
            "the JSON schema cannot be followed: Resource 'http://x.y/z' is not",
        ),
        ({"guided_json": {"$ref": "#"}}, "the JSON schema cannot be followed: "),
        ({"guided_json": {"enum": []}}, "the JSON schema cannot be followed: Unsatisfiable schema: anyOf is empty"),
        ({"guided_json": {"pattern": "("}}, "the JSON schema cannot be followed: unclosed group"),
        ({"guided_json": {"const": "\ud800"}}, "the JSON schema cannot be followed: "),
        (
            {"guided_json": {"oneOf": [{"type": "string"}, {"type": "string"}]}},
            "the JSON schema cannot be followed: oneOf constraints are not supported",
        ),
    ],
)
def test_what_cannot_be_followed(writer, given, message) -> None:
    told = one(writer, chat(**given))
    assert told.status == 400
    found = told.json["error"]["message"]
    assert found.startswith(message) and "\n" not in found and len(found) < 300


def test_a_grammar_that_grows_too_large_fails_alone(writer) -> None:
    wild = {"guided_regex": "([a-z]{1,1000}){1,1000}!", "temperature": 5.0, "seed": 1, "max_tokens": 400}
    bad, good = ask_all(writer, chat(**wild), chat(guided_regex="(a|b){20}"))
    assert re.fullmatch("[ab]{20}", choices(good)[0][0])
    assert (bad.status, bad.json["error"]["message"]) == (
        500,
        "the model failed on this request: the grammar cannot be followed any further: lexer error: too many expressions "
        "constructed",
    )


def test_it_is_compiled_once_and_beside_the_steps(writer, monkeypatch) -> None:
    compiled, threads = [], []
    true = grammars.Grammars._compile

    def noted(self: Any, grammar: Any) -> Any:
        compiled.append(grammar)
        threads.append(threading.current_thread())
        return true(self, grammar)

    monkeypatch.setattr(grammars.Grammars, "_compile", noted)
    documents = [chat(guided_regex="(c|d){9}", seed=number, temperature=1) for number in range(4)]
    assert all(re.fullmatch("[cd]{9}", choices(told)[0][0]) for told in ask_all(writer, *documents))
    assert len(compiled) == 1
    assert threads[0] not in (threading.main_thread(), writer.engine._thread)


def test_runtimes_and_hosts_that_cannot(writer, monkeypatch) -> None:
    monkeypatch.setattr(type(writer.backend), "constrains", False)
    told = one(writer, chat(guided_regex="a"))
    assert told.status == 400 and told.json["error"]["message"] == (
        "the runtime torch keeps no text to a grammar or to calls: ask for free text"
    )
    assert one(writer, chat(max_tokens=3)).status == 200
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    told = one(writer, chat(guided_regex="never seen before"))
    assert told.status == 400
    assert told.json["error"]["message"].startswith(
        "this server cannot keep a text to a grammar: this archive needs llguidance>=1.9, which this host's Python cannot"
    )
