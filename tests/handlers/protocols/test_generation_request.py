"""What a request for text may be, in three forms, and what a bad one is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from asked_for_text import JSON, SEED, USER, ask, completion, hf, hf_request, read, refusal

from handlers.errors import BadRequest
from handlers.inputs.checks import MAX_CHARACTERS
from handlers.protocols.continuation import GenerationRequest, Sampling
from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.openai import text as openai
from handlers.protocols.openai.messages import MAX_MESSAGES

# ---- how it arrives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": "naïve 日本", "parameters": {"max_new_tokens": 3}},
        {"prompt": "naïve 日本", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "naïve 日本"}]},
    ],
    ids=["inputs", "prompt", "messages"],
)
def test_one_document_in_every_way_it_can_arrive(document) -> None:
    body = json.dumps(document, ensure_ascii=False).encode()
    grpc = {"data": {"content-type": "application/octet-stream"}}
    ways = [
        ask(document),
        ask(document, {}),
        ask(body),
        ask(body, {"Content-Type": "application/json; charset=utf-8"}),
        ask(bytearray(body), grpc, "data"),
        ask(body, {"data": {}}, "data"),
        ask(b"\xef\xbb\xbf  \n" + body, {}),
    ]
    assert all(way == ways[0] for way in ways)
    assert "naïve 日本" in ways[0].prompts[0]


@pytest.mark.parametrize(
    ("value", "headers", "field"),
    [
        ("a film", {"content-type": "text/plain"}, "body"),
        (b"a film", {"content-type": "text/plain; charset=utf-8"}, "body"),
        (b"a film", {}, "body"),
        (b"a film", {"data": {"content-type": ""}}, "data"),
    ],
)
def test_plain_text_is_huggingface_s_form(value, headers, field) -> None:
    request, renderer = read(value, headers, field)
    assert request == hf_request("a film")
    assert renderer == hf_generation.Renderer(("a film",), True, False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; allowed: {"),
        (b'{"prompt": ', "the body is not valid JSON: Expecting value at line 1 column 12 (a body that begins with {"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8: byte 12 is 0xff"),
        (b"[" * 100_000, "nested too deeply; allowed"),
    ],
    ids=["empty", "cut off", "no UTF-8", "deep"],
)
def test_bodies_that_cannot_be_read(body, message) -> None:
    assert message in refusal(body, headers=JSON if body.startswith(b"[") else {})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], "the JSON body is a list, an object is expected; allowed: {"),
        ("text", "the JSON body is a string, an object is expected"),
        (None, "the JSON body is null, an object is expected"),
        ({}, "the body has neither 'inputs' nor 'messages' nor 'prompt'; allowed: {"),
        ({"inputs": "a", "prompt": "a"}, "the body has both 'inputs', 'prompt'; allowed: {"),
        ({"messages": [USER], "prompt": "a"}, "the body has both 'messages', 'prompt'"),
    ],
)
def test_one_form_a_request(document, message) -> None:
    assert refusal(document).startswith(message)


# ---- Hugging Face's form ----------------------------------------------------------------------------------------------


def test_huggingface_s_form() -> None:
    assert ask({"inputs": "a"}) == hf_request("a")
    request, renderer = read({"inputs": ["a", "b"], "parameters": None})
    assert request == hf_request("a", "b", single=False)
    assert renderer == hf_generation.Renderer(("a", "b"), False, False)
    assert read({"inputs": ["a"]})[1].single is False
    given = {
        "max_new_tokens": 7,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "repetition_penalty": 1.1,
        "frequency_penalty": -1,
        "presence_penalty": 2,
        "stop": ["x", "y"],
        "seed": 0,
        "return_full_text": False,
        "details": True,
        "max_time": 1.5,
    }
    request, renderer = read({"inputs": "a film", "parameters": given})
    sampling = Sampling(7, True, 0.5, 0.9, 10, 1.1, -1, 2, 0, logprobs=True)
    assert request == hf_request("a film", sampling=sampling, stops=("x", "y"), max_time=1.5)
    assert renderer == hf_generation.Renderer(("",), True, True)
    assert ask({"inputs": "a", "stream": True}).stream


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": []}, "'inputs' is an empty list; send 1 to 3 inputs"),
        ({"inputs": ["a"] * 4}, "'inputs' has 4 elements; at most 3 are allowed in one request"),
        ({"inputs": ["a", 5]}, "inputs[1] is a number; a text is expected"),
        ({"inputs": {"text": "a", "text_pair": "b"}}, "inputs is an object; a text is expected"),
        ({"inputs": None}, "inputs is null; a text is expected"),
        ({"inputs": " \n"}, "inputs is empty; at least one character"),
        ({"inputs": "\ud800"}, "inputs holds a lone surrogate at character 0"),
        ({"inputs": "a" * (MAX_CHARACTERS + 1)}, "inputs has 1000001 characters; at most 1000000 are allowed"),
        ({"inputs": "a", "parameters": [1]}, "'parameters' is a list, an object is expected"),
        ({"inputs": "a", "paramters": {}}, "unknown key 'paramters' in the body; allowed: 'inputs', 'parameters', 's"),
        ({"inputs": "a", "max_tokens": 4}, "unknown key 'max_tokens' in the body"),
        ({"inputs": "a", "parameters": {"max_tokens": 4}}, "unknown parameter 'max_tokens'; allowed: 'adapter', 'ad"),
        ({"inputs": "a", "parameters": {"truncation": True}}, "unknown parameter 'truncation'"),
        ({"inputs": "a", "stream": 1}, "'stream' is a number; allowed: true or false"),
        ({"inputs": "a", "stream": None}, "'stream' is null; allowed: true or false"),
        ({"inputs": ["a"], "stream": True}, "'stream' sends one text; 'inputs' is a list: send a single text"),
    ],
)
def test_what_huggingface_s_form_refuses(document, message) -> None:
    assert refusal(document).startswith(message)


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({}, False),
        ({"max_new_tokens": 3, "repetition_penalty": 1.2, "seed": 3}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.7}, True),
        ({"top_p": 0.9}, True),
        ({"top_k": 5}, True),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"temperature": 0}, False),
        ({"do_sample": True, "temperature": 0}, False),
        ({"do_sample": True, "temperature": 1e-9}, False),  # nobody could sample at that: it is the likeliest token
    ],
)
def test_huggingface_s_form_samples_when_it_is_asked_to(given, sampled) -> None:
    found = hf(**given).sampling
    assert found.do_sample == sampled
    assert found.temperature == (given.get("temperature", 1.0) if sampled else 1.0)
    assert found.seed == (SEED if sampled else 0)


# ---- OpenAI's forms ---------------------------------------------------------------------------------------------------


def test_openai_s_forms() -> None:
    sampling = Sampling(0, do_sample=True, seed=SEED)  # at temperature 1, which is OpenAI's default
    assert completion() == GenerationRequest(("a film",), ("the prompt",), sampling, 16)
    chat = {"messages": [{"role": "system", "content": "be brief"}, USER]}
    rendered = ("<system>be brief<user>hi",)
    # As long as there is room, and the template has written the special tokens.
    assert ask(chat) == GenerationRequest(rendered, ("the prompt",), sampling, None, special_tokens=False)
    given = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 10,
        "repetition_penalty": 1.1,
        "frequency_penalty": -1,
        "presence_penalty": 2,
        "stop": "x",
        "seed": 5,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "model": "any",
        "user": "me",
    }
    full = Sampling(7, True, 0.5, 0.9, 10, 1.1, -1, 2, 5)
    assert completion(**given) == GenerationRequest(("a film",), ("the prompt",), full, 16, stops=("x",), stream=True)
    assert completion(max_tokens=3, max_completion_tokens=4).sampling.max_new_tokens == 4
    assert completion(temperature=0).sampling == Sampling(0)


@pytest.mark.parametrize(
    ("document", "kind"),
    [({"prompt": "a"}, openai.CompletionRenderer), ({"messages": [USER]}, openai.ChatRenderer)],
    ids=["prompt", "messages"],
)
def test_openai_s_answers_repeat_the_models_name_and_tell_usage_where_it_is_asked_for(document, kind) -> None:
    for options in ({}, {"stream_options": {}}):
        renderer = read(document | options)[1]
        assert (type(renderer), renderer.model, renderer.usage) == (kind, "m", False)
    assert read(document | {"stream_options": {"include_usage": True}})[1].usage is True


@pytest.mark.parametrize("document", [{"prompt": "a"}, {"messages": [USER]}], ids=["prompt", "messages"])
def test_null_is_what_clients_send_for_what_was_not_set(document) -> None:
    assert ask(document | dict.fromkeys(openai.PARAMETERS)) == ask(document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"prompt": []}, "'prompt' is an empty list; a text, a list of texts, or token ids are expected"),
        ({"prompt": ["a", 5]}, "prompt[1] is a number; a text is expected"),
        ({"prompt": [[1], [-2]]}, "prompt[1] is no list of token ids"),
        ({"prompt": ["a", "b"], "n": 2}, "2 prompts with n 2 are 4 texts; at most 3 are allowed"),
        ({"prompt": [1], "echo": True}, "'echo' is true and 'prompt' has token ids"),
        ({"messages": [USER], "echo": True}, "unknown parameter 'echo'"),
        (
            {"messages": [USER], "logprobs": True, "top_logprobs": 21},
            "parameter 'top_logprobs' is 21; allowed: a whole number",
        ),
        (
            {"messages": [USER], "logprobs": True, "top_logprobs": True},
            "parameter 'top_logprobs' is true; allowed: a whole number",
        ),
        ({"messages": [USER], "top_logprobs": 0}, "'top_logprobs' is given without 'logprobs': true"),
        ({"prompt": "a", "logprobs": -1}, "parameter 'logprobs' is -1; allowed: a whole number from 0 to 20"),
        ({"prompt": 5}, "prompt is a number; a text is expected"),
        ({"prompt": None}, "prompt is null; a text is expected"),
        ({"prompt": ""}, "prompt is empty"),
        (
            {"prompt": "a", "max_new_tokens": 4},
            "unknown parameter 'max_new_tokens'; allowed: 'echo', 'frequency_penalty', 'g",
        ),
        ({"prompt": "a", "parameters": {}}, "unknown parameter 'parameters'"),
        ({"prompt": "a", "tools": []}, "unknown parameter 'tools'"),
        ({"messages": []}, "'messages' is a list; a list of {"),
        ({"messages": "hi"}, "'messages' is a string; a list of {"),
        ({"messages": None}, "'messages' is null; a list of {"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "'messages' has 1001 elements; at most 1000 are allowed"),
        ({"messages": [USER, "hi"]}, "messages[1] is a string; an object {"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role is null; allowed: system, developer, user, assistant"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, 'messages[0].role is "tool"; allowed: system'),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role is a list; allowed: system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is null; a text is expected"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is a number; a text is expected"),
        ({"messages": [USER | {"tool_calls": []}]}, "messages[0] has the unknown key 'tool_calls'; allowed: 'role'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content has parts that"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content has parts that are no text; allow"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content has parts that"),
    ],
)
def test_what_openai_s_forms_refuse(document, message) -> None:
    assert refusal(document).startswith(message)


def test_messages() -> None:
    heard: list[Any] = []

    def listening(messages: Sequence[Mapping[str, Any]]) -> str:
        heard.extend(messages)
        return "a prompt"

    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    roles = [{"role": role, "content": role} for role in ("system", "developer", "user", "assistant")]
    sent = [
        *roles,
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": "", "name": None},
    ]
    assert ask({"messages": sent}, chat=listening).prompts == ("a prompt",)
    assert heard == [
        *roles,
        {"role": "user", "content": "two parts", "name": "me"},
        {"role": "assistant", "content": ""},
    ]


def test_chats_need_a_template_that_takes_them() -> None:
    assert refusal({"messages": [USER]}, chat=None) == (
        "this model has no chat template: send 'prompt' or 'inputs' with the whole text"
    )
    assert refusal({"messages": [USER]}, chat=lambda _: " ").startswith("the rendered messages is empty")

    def refuse(messages: Any) -> str:
        raise BadRequest("roles must alternate")

    assert refusal({"messages": [USER]}, chat=refuse) == "roles must alternate"


def test_several_texts_and_prompts() -> None:
    request = ask({"messages": [USER], "n": 3, "seed": 5})
    assert len(request.prompts) == 3 and len(set(request.prompts)) == 1 and request.sampling.seed == 5
    request = ask({"prompt": ["a", "b"]})
    assert request.prompts == ("a", "b") and request.places == ("prompt[0]", "prompt[1]")
    assert ask({"prompt": [5, 6]}).prompts == ((5, 6),)
    assert ask({"prompt": [[5], [6, 7]]}).prompts == ((5,), (6, 7))


def test_log_probabilities_are_asked_for_in_both_ways() -> None:
    assert ask({"messages": [USER], "logprobs": True, "top_logprobs": 0}).sampling.logprobs
    assert ask({"prompt": "a", "logprobs": 0}).sampling.logprobs
    assert ask({"prompt": "a", "logprobs": 3}).sampling.top_logprobs == 3
    assert ask({"messages": [USER], "logprobs": True, "top_logprobs": 20}).sampling.top_logprobs == 20
    assert ask({"messages": [USER], "logit_bias": {"7": -100, "12": 0.5}}).sampling.bias == ((7, -100.0), (12, 0.5))
    assert not ask({"messages": [USER], "logprobs": False}).sampling.logprobs
    assert not ask({"prompt": "a"}).sampling.logprobs
