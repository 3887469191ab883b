"""text-generation in a worker: continuations, bounds, streams, and one bad request that harms no other."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from archiver.tasks.text.generation_staging import choose_prompts
from greedy import continue_greedily
from task_models import load_model
from tiny_models import DECODERS
from torchserve_side import REST, Context, Told, Wire, ask

from archiver.errors import DataError
from archiver.export.torch_packed import export_packed
from handlers.architecture.decoder import DecoderWithHead, greedy_steps
from handlers.errors import UnsoundArchive
from handlers.generation.backend import Step
from handlers.inputs.text import Encoder, TextInput
from handlers.tasks.text import generation as text_generation
from handlers.tasks.text.generation import TextGenerationHandler, open_backend

TASK = "text-generation"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} .{% endfor %}"
SESSION = {
    "runtime": "torch",
    "requirement": "transformers>=5.0",
    "config": "config.json",
    "model": "model.safetensors",
    "max_running": 4,
}
SERVING: dict[str, Any] = {
    "session": SESSION,
    "max_inputs": 4,
    "max_length": 32,
    "max_queue": 16,
    "deadline_s": 60.0,
    "chat": {"template": TEMPLATE, "tokens": {"bos_token": "<s>"}},
    "end_ids": [2],
    "tolerance": 0.001,
    "example_tokens": 5,
}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory) -> Path:
    """An archive's model files."""
    folder = tmp_path_factory.mktemp("exported")
    source = tiny_model("llama", TASK)
    export_packed(load_model(source, TASK), None, folder)
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def make(exported) -> Iterator[Callable[..., TextGenerationHandler]]:
    made: list[TextGenerationHandler] = []

    def build(**serving: Any) -> TextGenerationHandler:
        handler = TextGenerationHandler()
        handler.serving = SERVING | serving
        handler.encoder = Encoder(exported / "tokenizer.json", max_length=32, pad_id=1)
        handler.load(exported, threads=1)
        made.append(handler)
        return handler

    yield build
    for handler in made:
        handler.engine.close()


@pytest.fixture
def handler(make) -> TextGenerationHandler:
    return make()


def ask_all(handler: TextGenerationHandler, *documents: Any, headers: Mapping[str, Any] = REST) -> list[Told]:
    """All at once, as TorchServe's asynchronous service hands them over."""

    async def together() -> list[Told]:
        return await asyncio.gather(*(ask(handler, {"body": document}, headers) for document in documents))

    return asyncio.run(together())


def one(handler: TextGenerationHandler, document: Any, headers: Mapping[str, Any] = REST, **more: Any) -> Told:
    return asyncio.run(ask(handler, {"body": document, **more}, headers))


def asked(text: Any, tokens: int | None = 6, **parameters: Any) -> dict[str, Any]:
    given = parameters if tokens is None else {"max_new_tokens": tokens, **parameters}
    return {"inputs": text, "parameters": given}


def ids_of(handler: TextGenerationHandler, text: str) -> list[int]:
    return handler.encoder.encode([TextInput(text)], truncate=False)[0].ids


def told_events(told: Told) -> list[Any]:
    lines = told.body.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def slowed(handler: TextGenerationHandler, before: Callable[[], Any]) -> None:
    """Call `before` in front of every step of the model."""
    step = handler.backend.step

    def slow() -> list[Step]:
        before()
        return step()

    handler.backend.step = slow  # type: ignore[method-assign]


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


def test_an_unknown_runtime(exported) -> None:
    with pytest.raises(UnsoundArchive, match="needs the runtime 'abacus'; known: openvino, torch, vllm"):
        open_backend(exported, {"runtime": "abacus"}, 1, [2])


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
    assert handler.encoder.decode([*ids, *tokens]) == bare[0]["generated_text"]
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
    handler.encoder.tokenizer.no_truncation()

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
    monkeypatch.setattr(text_generation, "_GRACE_SECONDS", 0.05)
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

    def break_on_bad(key: int, ids: list[int], sampling: Any) -> None:
        if list(ids) == bad:
            raise MemoryError("no more")
        add(key, ids, sampling)

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
    assert told.status == 200 and told.context.response_headers == {"ts_stream_next": "false"}
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


# ---- TorchServe's channel ---------------------------------------------------------------------------------------------

GRPC = {"data": {"content-type": "application/octet-stream"}, "stream": {"content-type": ""}}


def test_a_whole_answer_over_rest_goes_out_as_one_piece_and_an_end(handler) -> None:
    told = one(handler, asked("a film"))
    (sent,) = told.sent
    assert (sent.status, sent.content_type, sent.more) == (200, "application/json", "true")
    assert told.last == b"" and told.context.response_headers == {"ts_stream_next": "false"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_over_rest_goes_out_whole(handler, stream) -> None:
    told = one(handler, asked("a film", 0) | {"stream": stream})
    (sent,) = told.sent
    assert (sent.status, sent.phrase, sent.content_type) == (400, "Bad Request", "application/json")
    assert sent.headers == {}
    assert told.last == b"" and told.context.response_headers == {"ts_stream_next": "false"}


def grpc(handler: TextGenerationHandler, document: Any, **inputs: bytes) -> Told:
    row = {"data": bytearray(json.dumps(document).encode()), **inputs}
    return asyncio.run(ask(handler, row, {name: GRPC.get(name, {}) for name in row}))


def test_one_response_over_grpc(handler) -> None:
    wanted = one(handler, asked("a film")).body
    for document in (asked("a film"), asked("a film") | {"stream": True}):
        told = grpc(handler, document)
        assert told.sent == [] and told.last == wanted
        assert told.context.response_headers == {"ts_stream_next": "false"}
        assert told.context.content_type == "application/json"
    told = grpc(handler, asked("a film", 0))
    assert told.sent == [] and told.json["error"]["code"] == 400


@pytest.mark.parametrize("value", [b"true", b"1", b" True\n"])
def test_a_stream_over_grpc_needs_the_input_that_only_streampredictions_may_have(handler, value) -> None:
    told = grpc(handler, asked("a film", 4) | {"stream": True}, stream=value)
    assert len(told.sent) == 3 and all(sent.more == "true" for sent in told.sent)
    assert len(told_events(told)) == 4 and told.context.content_type == "text/event-stream"


@pytest.mark.parametrize("value", [b"false", b"0", b"", b"\xff"])
def test_no_stream_over_grpc_otherwise(handler, value) -> None:
    assert grpc(handler, asked("a film", 4) | {"stream": True}, stream=value).sent == []
    assert grpc(handler, asked("a film", 4), stream=b"true").sent == []


def test_a_stream_over_rest(make) -> None:
    handler = make(end_ids=[])
    whole = one(handler, asked("a film", 5)).json[0]["generated_text"]
    told = one(handler, asked("a film", 5) | {"stream": True})
    assert [(sent.status, sent.content_type, sent.more) for sent in told.sent] == [
        (200, "text/event-stream", "true")
    ] * 4
    assert told.last.startswith(b"data: ") and told.context.content_type == "text/event-stream"
    assert told.context.response_headers == {"ts_stream_next": "false"}
    found = told_events(told)
    assert [event["index"] for event in found] == [1, 2, 3, 4, 5]
    assert "a film" + "".join(event["token"]["text"] for event in found) == found[-1]["generated_text"] == whole


def test_a_stream_of_one_event_has_a_piece_and_an_end_too(handler) -> None:
    told = one(handler, asked("a film", 1) | {"stream": True})
    (sent,) = told.sent
    assert (sent.status, sent.content_type, sent.more) == (200, "text/event-stream", "true")
    assert told.last == b"" and len(told_events(told)) == 1


def test_streams_beside_each_other_and_beside_whole_answers(handler, sentences) -> None:
    texts = list(sentences)[:4]
    wanted = [one(handler, asked(text, 6)).json[0]["generated_text"] for text in texts]
    streamed = ask_all(handler, *(asked(text, 6) | {"stream": bool(i % 3)} for i, text in enumerate(texts)))
    found = [told_events(told)[-1] if i % 3 else told.json[0] for i, told in enumerate(streamed)]
    assert [answer["generated_text"] for answer in found] == wanted


def test_a_chat_s_stream(handler) -> None:
    document = {"messages": [{"role": "user", "content": "a film"}], "max_tokens": 5, "temperature": 0}
    whole = one(handler, document).json["choices"][0]["message"]["content"]
    found = told_events(one(handler, document | {"stream": True, "stream_options": {"include_usage": True}}))
    assert found[-1] == "[DONE]" and found[-2]["usage"]["completion_tokens"] == 5
    deltas = [event["choices"][0]["delta"] for event in found[:-2]]
    assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_two_requests_in_one_batch(handler) -> None:
    with pytest.raises(ValueError, match="2 requests in one batch: this archive needs batchSize 1"):
        asyncio.run(handler.handle([{"body": asked("a")}] * 2, Context(Wire(), REST)))


class Metrics:
    """TorchServe's metrics cache, which is copied with every context."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}
        self.lock = threading.Lock()  # cannot be copied

    def add_counter(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def add_metric(self, name: str, value: float, unit: str, metric_type: Any) -> None:
        self.found.setdefault(name, []).append(value)


def test_metrics(handler, monkeypatch) -> None:
    context = Context(Wire(), REST, metrics=Metrics())
    start = SimpleNamespace(
        metrics=context.metrics, model_name="writer", model_yaml_config={}, system_properties={"model_dir": "."}
    )
    monkeypatch.setattr(handler, "open", lambda folder, threads: None)
    handler.initialize(start)
    assert copy.deepcopy(context.metrics) is context.metrics
    asyncio.run(handler.handle([{"body": asked(["a film", "good"], 4)}], context))
    found = context.metrics.found
    assert found["marpress_requests"] == [1] and found["marpress_inputs"] == [2]
    assert found["marpress_generated_tokens"] == [8] and "marpress_request_errors" not in found
    assert found["marpress_prompt_tokens"] == [len(ids_of(handler, "a film")) + len(ids_of(handler, "good"))]
    assert len(found["marpress_ttft_seconds"]) == len(found["marpress_tpot_seconds"]) == 2
    assert found["marpress_tokens_per_second"][0] > 0
    asyncio.run(handler.handle([{"body": asked("a", 0)}], context))
    assert found["marpress_request_errors"] == [1] and len(found["marpress_generated_tokens"]) == 1


# ---- stored examples --------------------------------------------------------------------------------------------------


def test_stored_continuations_end_before_a_token_is_undecided(make, tiny_model, sentences) -> None:
    handler = make()
    model = load_model(tiny_model("llama", TASK), TASK)
    subject: Any = SimpleNamespace(module=DecoderWithHead(model))
    prompts = [TextInput(text) for text in sentences]
    chosen, tokens = choose_prompts(handler, subject, prompts, 2)
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
        choose_prompts(handler, subject, prompts, 2)
