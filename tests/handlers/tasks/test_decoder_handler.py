"""text-generation in a worker: continuations, bounds, and one bad request that harms no other."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import torch
from generating import TASK, ask_all, asked, ids_of, one, slowed, told_events
from greedy import continue_greedily, greedy_steps
from task_models import load_model
from tiny_models import DECODERS
from torchserve_side import Told, ask

from archiver.errors import DataError
from archiver.tasks.text.generation.examples import choose_prompts
from handlers.inputs.text import TextInput
from handlers.tasks import engine as engine_handler

# ---- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_with_kept_keys_is_what_the_whole_text_says(tiny_model, kind) -> None:
    model = load_model(tiny_model(kind, TASK), TASK)
    ids = [0, 41, 52, 63]
    found = continue_greedily(model, ids, 12, end_ids=())
    again = list(ids)
    for _ in range(12):
        with torch.no_grad():
            again.append(int(model(torch.tensor([again])).logits[0, -1].argmax()))
    assert found == again[4:]
    stop = found[5]
    assert continue_greedily(model, ids, 12, end_ids=[stop]) == found[: found.index(stop)]


# ---- answers ----------------------------------------------------------------------------------------------------------


def test_answers(handler) -> None:
    bare, listed, new = (
        told.json
        for told in ask_all(
            handler,
            asked("this film"),
            asked(["this film", "a dull story"]),
            asked("this film", return_full_text=False),
        )
    )
    assert bare.__class__ is list and list(bare[0]) == ["generated_text"]
    assert bare[0]["generated_text"] == "this film" + new[0]["generated_text"]
    assert listed[0] == bare and len(listed) == 2
    ids = ids_of(handler, "this film")
    tokens = handler.continuation(ids, 6)
    assert handler.input.encoder.decode([*ids, *tokens]) == bare[0]["generated_text"]
    assert handler.respond([TextInput("this film")], {"max_new_tokens": 6}) == [bare]


def test_together_as_alone_and_a_bad_one_fails_alone(handler, sentences) -> None:
    documents: list[Any] = [asked(text, 3 + index) for index, text in enumerate(sentences)]
    together = ask_all(handler, *documents)
    assert {told.status for told in together} == {200}
    assert len({told.body for told in together}) == len(documents)
    for document, told in zip(documents, together, strict=True):
        assert one(handler, document).body == told.body
    answers = ask_all(handler, *documents[:2], asked("a", 0), *documents[3:])
    assert [told.status for told in answers] == [200, 200, 400, *[200] * (len(documents) - 3)]
    assert answers[2].json["error"] == {
        "code": 400,
        "message": "parameter 'max_new_tokens' is 0; allowed: a whole number from 1",
    }
    assert [told.body for i, told in enumerate(answers) if i != 2] == [
        told.body for i, told in enumerate(together) if i != 2
    ]


def test_three_forms(make) -> None:
    handler = make(end_ids=[])
    whole = one(handler, asked("a film", 5, return_full_text=False)).json[0]["generated_text"]
    completion = one(handler, {"prompt": "a film", "max_tokens": 5, "temperature": 0}).json
    assert completion["choices"][0]["text"] == whole
    length = len(ids_of(handler, "a film"))
    assert completion["usage"] == {"prompt_tokens": length, "completion_tokens": 5, "total_tokens": length + 5}
    chat = one(handler, {"messages": [{"role": "user", "content": "a film"}], "max_tokens": 5, "temperature": 0}).json
    rendered = asked("user a film .", 5, return_full_text=False)
    assert chat["choices"][0]["message"]["content"] == one(handler, rendered).json[0]["generated_text"]
    # The template wrote <s> itself: the tokenizer adds none.
    assert chat["usage"]["prompt_tokens"] == len(ids_of(handler, "user a film ."))


def test_chats_need_a_template(make) -> None:
    told = one(make(chat=None), {"messages": [{"role": "user", "content": "hi"}]})
    assert (told.status, told.json["error"]["message"][:34]) == (400, "this model has no chat template: s")


def test_how_long_a_text_gets_that_nobody_bounded(make) -> None:
    handler = make(max_length=48, end_ids=[])
    handler.input.encoder.tokenizer.no_truncation()

    def written(document: dict[str, Any]) -> int:
        return one(handler, document | {"temperature": 0}).json["usage"]["completion_tokens"]

    assert written({"prompt": "a"}) == 16
    prompt = one(handler, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}).json["usage"]
    assert written({"messages": [{"role": "user", "content": "a"}]}) == 48 - prompt["prompt_tokens"]
    details = one(handler, asked("a", None, details=True)).json[0]["details"]
    assert details["generated_tokens"] == 48 - details["prompt_tokens"]  # 64 do not fit


def test_log_probabilities_and_an_end_token(make) -> None:
    handler = make()
    ids = ids_of(handler, "this film")
    tokens = handler.continuation(ids, 8)
    (found,) = one(handler, asked("this film", 8, details=True)).json
    assert [token["id"] for token in found["details"]["tokens"]] == tokens
    assert all(token["logprob"] < 0 for token in found["details"]["tokens"])
    assert found["details"]["finish_reason"] == "length"
    stopping = make(end_ids=[tokens[4]])
    (found,) = one(stopping, asked("this film", 8, details=True)).json
    assert found["details"]["finish_reason"] == "eos_token"
    assert found["details"]["generated_tokens"] == tokens.index(tokens[4])


def test_a_stop_string(handler) -> None:
    (whole,) = one(handler, asked("this film", 10, return_full_text=False)).json
    text = whole["generated_text"]
    stop = text[len(text) // 2 :][:2]
    (found,) = one(handler, asked("this film", 10, return_full_text=False, stop=stop, details=True)).json
    assert found["generated_text"] == text[: text.index(stop)]
    assert found["details"]["finish_reason"] == "stop_sequence"


def test_seeds(handler) -> None:
    def texts(**parameters: Any) -> list[str]:
        found = one(handler, asked(["this film", "this film"], 12, temperature=3.0, **parameters)).json
        return [answer[0]["generated_text"] for answer in found]

    first, second = texts(seed=7)
    assert first != second and texts(seed=7) == [first, second]
    assert texts(seed=8)[0] == second  # each input has the next seed
    assert texts(seed=2**63 - 1)[1] == texts(seed=0)[0]
    assert texts() != texts()


# ---- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds(handler) -> None:
    length = len(ids_of(handler, "good " * 3))
    fits, over, long, pair, default, unknown = ask_all(
        handler,
        asked("good " * 3, 32 - length),
        asked(["good", "good " * 3], 33 - length),
        {"inputs": "good " * 90},
        {"inputs": {"text": "a", "text_pair": "b"}},
        {"inputs": "good"},
        asked("a", truncation=True),
    )
    assert [told.status for told in (fits, over, long, pair, default, unknown)] == [200, 400, 400, 400, 200, 400]
    assert over.json["error"]["message"] == (
        f"inputs[1] has {length} tokens and {33 - length} new ones are asked for; together at most 32 are allowed: "
        f"ask for {32 - length} or less"
    )
    assert long.json["error"]["message"] == (
        f"the prompt has {len(ids_of(handler, 'good ' * 90))} tokens; prompt and continuation together may have 32, "
        "so that a prompt has at most 31"
    )
    assert pair.json["error"]["message"] == "inputs is an object; a text is expected"
    assert "unknown parameter 'truncation'" in unknown.json["error"]["message"]


def test_a_queue_that_is_full(make) -> None:
    handler = make(max_queue=0)
    gate = threading.Semaphore(0)
    slowed(handler, lambda: gate.acquire(timeout=20))

    async def run() -> list[Told]:
        first = asyncio.create_task(ask(handler, {"body": asked(["a", "b", "c", "d"], 2)}))
        while handler.engine.room[0] < 4:
            await asyncio.sleep(0.001)
        second = await ask(handler, {"body": asked("a", 2)})
        streamed = await ask(handler, {"body": asked("a", 2) | {"stream": True}})
        gate.release(100)
        return [await first, second, streamed]

    first, *refused = asyncio.run(run())
    assert first.status == 200 and len(first.json) == 4
    for told in refused:
        assert told.status == 503
        assert told.json["error"] == {
            "code": 503,
            "message": "the queue is full: 4 of 4 places are taken; try again later",
        }
    assert one(handler, asked("a", 2)).status == 200


def test_deadlines(make) -> None:
    handler = make()
    slowed(handler, lambda: time.sleep(0.1))
    (found,) = one(handler, asked("this film", 25, max_time=0.5, details=True)).json
    assert found["details"]["finish_reason"] == "time" and 1 <= found["details"]["generated_tokens"] < 10
    late = make(deadline_s=1e-6)
    for document in (asked("a"), asked("a") | {"stream": True}, asked(["a", "b"])):
        told = one(late, document)
        assert told.status == 504
        assert (
            told.json["error"]["message"] == "the request's deadline passed before its first token: the server is busy"
        )
    # What an archive is checked with has no deadline.
    assert late.respond([TextInput("a")], {"max_new_tokens": 3}) == handler.respond(
        [TextInput("a")], {"max_new_tokens": 3}
    )


def test_a_model_that_is_stuck(make, monkeypatch) -> None:
    monkeypatch.setattr(engine_handler, "_GRACE_SECONDS", 0.05)
    handler = make(deadline_s=0.05)
    gate = threading.Semaphore(0)
    slowed(handler, lambda: gate.acquire(timeout=20))
    told = one(handler, asked("a", 20))
    assert told.status == 504
    assert told.json["error"]["message"] == "the model did not answer before the request's deadline"
    gate.release(1000)
    handler.serving = handler.serving | {"deadline_s": 60.0}
    assert one(handler, asked("a", 2)).status == 200


# ---- faults -----------------------------------------------------------------------------------------------------------


def test_a_prompt_that_the_model_cannot_take_fails_its_request_alone(handler) -> None:
    add, bad = handler.backend.add, ids_of(handler, "dull")

    def break_on_bad(key: int, ids: list[int], *more: Any) -> None:
        if list(ids) == bad:
            raise MemoryError("no more")
        add(key, ids, *more)

    handler.backend.add = break_on_bad
    answers = ask_all(handler, asked("good"), asked(["good", "dull"]), asked("dull") | {"stream": True}, asked("fine"))
    assert [told.status for told in answers] == [200, 500, 500, 200]
    for told in answers[1:3]:
        assert told.json["error"] == {"code": 500, "message": "the model failed on this request: no more"}
    with pytest.raises(ArithmeticError, match="no more"):
        handler.respond([TextInput("dull")])


def test_a_step_that_fails(handler) -> None:
    steps = iter(range(100))

    def third() -> None:
        if next(steps) == 2:
            raise MemoryError("no more")

    slowed(handler, third)
    told = one(handler, asked("a", 6) | {"stream": True})
    *pieces, last = told_events(told)
    assert pieces and all(piece["generated_text"] is None for piece in pieces)
    assert last == {
        "error": {"code": 500, "message": "the model failed on this request: the model failed: MemoryError"}
    }
    assert told.status == 200 and told.ending.headers == {"ts_stream_next": "false"}
    assert one(handler, asked("a", 6)).status == 200


def test_logits_that_are_no_numbers_are_an_error(handler) -> None:
    with torch.no_grad():
        handler.backend._model.lm_head.weight.fill_(float("nan"))
    told = one(handler, asked("good"))
    assert told.status == 500
    assert told.json["error"]["message"] == "the model failed on this request: the model gave no answer to this prompt"


def test_an_error_of_the_handler_itself(handler, monkeypatch, caplog) -> None:
    monkeypatch.setattr(handler, "_jobs", lambda request: 1 / 0)
    told = one(handler, asked("good"))
    assert (told.status, told.json["error"]["message"]) == (500, "the request failed: ZeroDivisionError")
    assert "a request failed" in caplog.text


# ---- stored examples --------------------------------------------------------------------------------------------------


def test_stored_continuations_end_before_a_token_is_undecided(make, tiny_model, sentences) -> None:
    handler = make()
    model = load_model(tiny_model("llama", TASK), TASK)
    prompts = [TextInput(text) for text in sentences]
    chosen, tokens = choose_prompts(handler, model, prompts, 2)
    assert len(chosen) == 2 and 1 <= tokens <= 16
    for prompt in chosen:
        ids = ids_of(handler, prompt.text)
        steps = greedy_steps(model, ids)
        served = handler.continuation(ids, tokens)
        for place, (token, margin) in enumerate([next(steps) for _ in range(tokens)]):
            if token == 2:
                break
            assert margin > 0.002 and served[place] == token
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(DataError, match="no text can be stored as an example: each of 6 has more than"):
        choose_prompts(handler, model, prompts, 2)
