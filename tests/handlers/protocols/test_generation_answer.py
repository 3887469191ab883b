"""Answers word by word: the JSON bodies and event streams of the three forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.generation.engine import Job
from handlers.protocols.continuation import LENGTH, STOP, STOP_STRING, TIME, Renderer, Sampling
from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.openai.answers import ChatRenderer, CompletionRenderer
from handlers.protocols.reply import to_json

HF, COMPLETION, CHAT = "huggingface", "completion", "chat"
REASONS = [
    (STOP, "eos_token", "stop"),
    (STOP_STRING, "stop_sequence", "stop"),
    (LENGTH, "length", "length"),
    (TIME, "time", "time"),
]


def answer_of(style: str, *prompts: str, details: bool = False, usage: bool = False) -> Renderer:
    if style == HF:
        return hf_generation.Renderer(prompts, len(prompts) == 1, details)
    return openai_of(style, usage=usage)


def openai_of(style: str, **more: Any) -> Any:
    return (ChatRenderer if style == CHAT else CompletionRenderer)("writer", id="7", created=1000, **more)


def whole(answer: Renderer, *jobs: Job) -> bytes:
    return to_json(answer.whole(jobs))


def job(text: str = " good", ids: list[int] | None = None, finish: str = LENGTH, **more: Any) -> Job:
    sampling = more.pop("sampling", Sampling(5))
    return Job([1, 2, 3], sampling, ids=[11, 12] if ids is None else ids, text=text, finish=finish, **more)


def openai(kind: str, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    head = {"id": f"{prefix}-7", "object": kind, "created": 1000, "model": "writer", "choices": list(choices)}
    return head | more


def events(stream: bytes) -> list[Any]:
    """What a client of server-sent events reads."""
    assert stream.endswith(b"\n\n") or not stream
    found = [line.removeprefix(b"data: ") for line in stream.split(b"\n\n")[:-1]]
    assert b"".join(b"data: " + line + b"\n\n" for line in found) == stream
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in found]


def stream_of(answer: Renderer, steps: list[tuple[list[int], str]], finish: str, last: str = "") -> list[list[Any]]:
    """The events of each step, then of the end, as the handler calls for them."""
    running = job("", [], finish)
    running.finish = None
    told = []
    for ids, text in steps:
        running.ids += ids
        running.text += text
        told.append(events(answer.piece(running, text)))
    running.text += last
    running.finish = finish
    return [*told, events(answer.ending(running, last) + answer.closing([running]))]


# ---- whole answers ----------------------------------------------------------------------------------------------------


def test_huggingface_s_body_to_the_byte() -> None:
    assert whole(answer_of(HF, "a film"), job()) == b'[{"generated_text":"a film good"}]'
    assert whole(answer_of(HF, "日本"), job("語")) == '[{"generated_text":"日本語"}]'.encode()
    listed = whole(answer_of(HF, "a", "b"), job(" x"), job(" y"))
    assert listed == b'[[{"generated_text":"a x"}],[{"generated_text":"b y"}]]'
    assert whole(hf_generation.Renderer(("",), False, False), job(" x")) == b'[[{"generated_text":" x"}]]'


@pytest.mark.parametrize(("finish", "word", "_"), REASONS)
def test_huggingface_s_details(finish, word, _) -> None:
    answer = answer_of(HF, "a", details=True)
    sampled = Sampling(5, do_sample=True, seed=9)
    found = json.loads(whole(answer, job(finish=finish, logprobs=[-0.12345678, -1.5], sampling=sampled)))
    assert found == [
        {
            "generated_text": "a good",
            "details": {
                "finish_reason": word,
                "generated_tokens": 2,
                "prompt_tokens": 3,
                "seed": 9,
                "tokens": [{"id": 11, "logprob": -0.123457}, {"id": 12, "logprob": -1.5}],
            },
        }
    ]
    greedy = json.loads(whole(answer, job(finish=finish)))[0]["details"]
    assert greedy["seed"] is None and greedy["tokens"] == [{"id": 11, "logprob": None}, {"id": 12, "logprob": None}]


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_openai_s_bodies_to_the_byte() -> None:
    assert whole(answer_of(COMPLETION, "a"), job()) == (
        b'{"id":"cmpl-7","object":"text_completion","created":1000,"model":"writer",'
        b'"choices":[{"index":0,"text":" good","logprobs":null,"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
    )
    assert whole(answer_of(CHAT, "a"), job(finish=STOP)) == (
        b'{"id":"chatcmpl-7","object":"chat.completion","created":1000,"model":"writer",'
        b'"choices":[{"index":0,"message":{"role":"assistant","content":" good","refusal":null},"logprobs":null,'
        b'"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
    )


@pytest.mark.parametrize("style", [COMPLETION, CHAT])
@pytest.mark.parametrize(("finish", "_", "word"), REASONS)
def test_openai_s_finish_reasons(style, finish, _, word) -> None:
    (choice,) = json.loads(whole(answer_of(style, "a"), job(finish=finish)))["choices"]
    assert choice["finish_reason"] == word
    *_, end, done = stream_of(answer_of(style, "a"), [([11], "x")], finish)[-1]
    assert (end["choices"][0]["finish_reason"], done) == (word, "[DONE]")


def test_several_texts_for_each_prompt_which_counts_once() -> None:
    found = openai_of(CHAT, choices=2).whole([job(" x"), job(" y", finish=STOP)])
    told = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in found["choices"]]
    assert told == [(0, " x", "length"), (1, " y", "stop")]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_log_probabilities_of_the_chosen_tokens() -> None:
    one = job(" aß", logprobs=[-0.12345678, -1.5])
    spell = {11: " a", 12: "ß"}.__getitem__
    (choice,) = openai_of(COMPLETION, spell=spell).whole([one])["choices"]
    assert choice["logprobs"] == {
        "tokens": [" a", "ß"],
        "token_logprobs": [-0.123457, -1.5],
        "top_logprobs": None,
        "text_offset": [0, 2],
    }
    (choice,) = openai_of(CHAT, spell=spell).whole([one])["choices"]
    assert choice["logprobs"]["content"][1] == {"token": "ß", "logprob": -1.5, "bytes": [195, 159], "top_logprobs": []}


def test_the_likeliest_tokens_beside_the_chosen_ones() -> None:
    spell = {11: " a", 12: "ß", 13: "z"}.__getitem__
    one = job(" aß", logprobs=[-0.1, -1.5], tops=[((11, -0.1), (13, -2.0)), ((13, -0.25), (11, -1.4))])
    (choice,) = openai_of(COMPLETION, spell=spell).whole([one])["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{" a": -0.1, "z": -2.0}, {"z": -0.25, " a": -1.4, "ß": -1.5}]
    (choice,) = openai_of(CHAT, spell=spell).whole([one])["choices"]
    tops = [each["top_logprobs"] for each in choice["logprobs"]["content"]]
    assert [[(top["token"], top["logprob"]) for top in each] for each in tops] == [
        [(" a", -0.1), ("z", -2.0)],
        [("z", -0.25), (" a", -1.4)],
    ]
    assert tops[0][0]["bytes"] == [32, 97]


@pytest.mark.parametrize("style", [COMPLETION, CHAT])
def test_a_stream_of_two_texts_with_log_probabilities(style) -> None:
    answer = openai_of(style, choices=2, spell=str, usage=True)
    jobs = [job("", [], LENGTH), job("", [], STOP)]
    told: list[Any] = []
    for step, (index, text) in enumerate([(0, "a"), (1, "b"), (0, "c")]):
        jobs[index].ids.append(step)
        jobs[index].logprobs.append(-step / 2)
        jobs[index].text += text
        told += events(answer.piece(jobs[index], text, index))
    told += events(answer.ending(jobs[1], "", 1) + answer.ending(jobs[0], "", 0) + answer.closing(jobs))
    *chunks, usage, done = told
    assert done == "[DONE]" and usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["index"] for choice in choices if choice["finish_reason"]] == [1, 0]
    texts = [
        [one.get("text") or one.get("delta", {}).get("content") or "" for one in choices if one["index"] == i]
        for i in (0, 1)
    ]
    assert ["".join(text) for text in texts] == ["ac", "b"]
    values = [
        value
        for one in choices
        if one["index"] == 0 and one["logprobs"]
        for value in (one["logprobs"].get("token_logprobs") or [each["logprob"] for each in one["logprobs"]["content"]])
    ]
    assert values == [0.0, -1.0]
    if style == CHAT:
        assert sum("role" in one["delta"] for one in choices) == 2


def test_a_completion_s_prompt_stands_before_its_text() -> None:
    answer = openai_of(COMPLETION, before=("a film", "b"), choices=1)
    assert [one["text"] for one in answer.whole([job(" x"), job(" y")])["choices"]] == ["a film x", "b y"]
    running = job(" x", [11])
    assert [one["choices"][0]["text"] for one in events(answer.piece(running, " x", 0))] == ["a film x"]
    assert [one["choices"][0]["text"] for one in events(answer.piece(running, " z", 0))] == [" z"]


def test_each_answer_has_an_id_of_its_own() -> None:
    one, two = (ChatRenderer("writer").whole([job()]) for _ in range(2))
    assert one["id"] != two["id"]


# ---- streams ----------------------------------------------------------------------------------------------------------


def test_huggingface_s_stream() -> None:
    def token(token_id: int, text: str) -> dict[str, Any]:
        return {"id": token_id, "text": text, "logprob": None, "special": False}

    told = stream_of(answer_of(HF, "a film"), [([11], " go"), ([12], ""), ([], ""), ([13, 14], "od")], LENGTH, "!")
    assert told == [
        [{"index": 1, "token": token(11, " go"), "generated_text": None, "details": None}],
        [{"index": 2, "token": token(12, ""), "generated_text": None, "details": None}],
        [],
        [{"index": 4, "token": token(14, "od"), "generated_text": None, "details": None}],
        [
            {
                "index": 4,
                "token": {"id": None, "text": "!", "logprob": None, "special": True},
                "generated_text": "a film good!",
                "details": {"finish_reason": "length", "generated_tokens": 4, "prompt_tokens": 3, "seed": None},
            }
        ],
    ]
    none = stream_of(answer_of(HF, "a"), [], STOP)
    assert none[0][0]["token"] == {"id": None, "text": "", "logprob": None, "special": True}
    assert none[0][0]["generated_text"] == "a"


def test_huggingface_s_stream_with_log_probabilities() -> None:
    answer = answer_of(HF, "a", details=True)
    running = job("", [], LENGTH)
    running.ids, running.logprobs = [11], [-0.25]
    assert events(answer.piece(running, "x"))[0]["token"]["logprob"] == -0.25
    running.ids, running.logprobs = [11, 12], [-0.25, -1.23456789]
    (last,) = events(answer.ending(running, "y"))
    assert last["token"] == {"id": 12, "text": "y", "logprob": -1.234568, "special": False}
    assert "tokens" not in last["details"]  # they came one by one


def test_a_completion_s_stream() -> None:
    def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
        return openai("text_completion", {"index": 0, "text": text, "logprobs": None, "finish_reason": reason})

    told = stream_of(answer_of(COMPLETION, "a"), [([11], " go"), ([12], ""), ([13], "od")], STOP, "!")
    assert told == [[chunk(" go")], [], [chunk("od")], [chunk("!"), chunk("", "stop"), "[DONE]"]]
    told = stream_of(answer_of(COMPLETION, "a"), [([11], "x")], LENGTH)
    assert told == [[chunk("x")], [chunk("", "length"), "[DONE]"]]


def test_a_chat_s_stream_says_once_who_speaks() -> None:
    def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return openai("chat.completion.chunk", {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason})

    begin = chunk({"role": "assistant", "content": ""})
    told = stream_of(answer_of(CHAT, "a"), [([11], ""), ([12], " go"), ([13], "od")], STOP, "!")
    assert told == [
        [],
        [begin, chunk({"content": " go"})],
        [chunk({"content": "od"})],
        [chunk({"content": "!"}), chunk({}, "stop"), "[DONE]"],
    ]
    assert stream_of(answer_of(CHAT, "a"), [], STOP) == [[begin, chunk({}, "stop"), "[DONE]"]]
    assert stream_of(answer_of(CHAT, "a"), [], STOP, "x") == [
        [begin, chunk({"content": "x"}), chunk({}, "stop"), "[DONE]"]
    ]


@pytest.mark.parametrize(("style", "kind"), [(COMPLETION, "text_completion"), (CHAT, "chat.completion.chunk")])
def test_usage_at_the_end_of_a_stream(style, kind) -> None:
    told = stream_of(answer_of(style, "a", usage=True), [([11], "x"), ([12], "y")], LENGTH)
    assert told[-1][-2:] == [openai(kind, usage=USAGE), "[DONE]"]
    assert not any("usage" in event for step in told[:-1] for event in step)
