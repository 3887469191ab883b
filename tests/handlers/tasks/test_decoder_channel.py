"""text-generation on TorchServe's channel: whole answers, streams, errors over REST and gRPC, metrics."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from generating import SESSION, ask_all, asked, ids_of, one, told_events
from torchserve_side import REST, Told, ask, wire_of

from handlers.errors import UnsoundArchive
from handlers.tasks.text.generation import TextGenerationHandler

GRPC = {"data": {"content-type": "application/octet-stream"}, "stream": {"content-type": ""}}


def test_a_whole_answer_over_rest_goes_out_as_one_piece_and_an_end(handler) -> None:
    told = one(handler, asked("a film"))
    (sent,) = told.sent
    assert (sent.status, sent.content_type, sent.more) == (200, "application/json", "true")
    assert told.last == b"" and told.ending.headers == {"ts_stream_next": "false"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_over_rest_goes_out_whole(handler, stream) -> None:
    told = one(handler, asked("a film", 0) | {"stream": stream})
    (sent,) = told.sent
    assert (sent.status, sent.phrase, sent.content_type) == (400, "Bad Request", "application/json")
    assert sent.headers == {}
    assert told.last == b"" and told.ending.headers == {"ts_stream_next": "false"}


def grpc(handler: TextGenerationHandler, document: Any, **inputs: bytes) -> Told:
    row = {"data": bytearray(json.dumps(document).encode()), **inputs}
    return asyncio.run(ask(handler, row, {name: GRPC.get(name, {}) for name in row}))


def test_one_response_over_grpc(handler) -> None:
    wanted = one(handler, asked("a film")).body
    for document in (asked("a film"), asked("a film") | {"stream": True}):
        told = grpc(handler, document)
        assert told.sent == [] and told.last == wanted
        assert told.ending.headers == {"ts_stream_next": "false"}
        assert told.ending.content_type == "application/json"
    told = grpc(handler, asked("a film", 0))
    assert told.sent == [] and told.json["error"]["code"] == 400


@pytest.mark.parametrize("value", [b"true", b"1", b" True\n"])
def test_a_stream_over_grpc_needs_the_input_that_only_streampredictions_may_have(handler, value) -> None:
    told = grpc(handler, asked("a film", 4) | {"stream": True}, stream=value)
    assert len(told.sent) == 3 and all(sent.more == "true" for sent in told.sent)
    assert len(told_events(told)) == 4 and told.ending.content_type == "text/event-stream"


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
    assert told.last.startswith(b"data: ") and told.ending.content_type == "text/event-stream"
    assert told.ending.headers == {"ts_stream_next": "false"}
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


def test_a_worker_that_gets_batches_says_what_it_needs(handler) -> None:
    context = SimpleNamespace(model_name="writer", model_yaml_config={"batchSize": 4})
    with pytest.raises(
        UnsoundArchive, match="'writer' writes its answers token by token: it needs asyncCommunication: true"
    ):
        handler.initialize(context)


def test_openai_s_paths_and_errors(handler) -> None:
    def at(path: str, document: Any) -> Told:
        return one(handler, document, REST | {"url_path": path})

    told = at("v1/completions", {"prompt": "a film", "max_tokens": 3, "temperature": 0})
    assert told.json["object"] == "text_completion"
    assert at("completions", {"prompt": "a film", "max_tokens": 3}).status == 200
    missing = at("chat/completions", {"prompt": "a film"})
    unknown = at("embeddings", {"input": "a film"})
    assert (missing.status, unknown.status) == (400, 404)
    for wrong in (missing, unknown):
        assert wrong.json["error"]["type"] == "invalid_request_error"
    assert "no 'messages', which chat/completions is about; found 'prompt'" in missing.json["error"]["message"]
    assert "this model has 'models', 'chat/completions', 'completions'" in unknown.json["error"]["message"]
    assert at("models", b"").json["object"] == "list"


def test_several_choices_prompts_and_token_ids(handler) -> None:
    greedy = {"max_tokens": 4, "temperature": 0}
    alone = [one(handler, {"prompt": text, **greedy}).json["choices"][0]["text"] for text in ("a film", "good")]
    several = one(handler, {"prompt": ["a film", "good"], "n": 2, **greedy}).json
    assert [choice["text"] for choice in several["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
    ids = one(handler, {"prompt": ids_of(handler, "a film"), "echo": False, **greedy}).json
    assert ids["choices"][0]["text"] == alone[0] and ids["usage"]["prompt_tokens"] == len(ids_of(handler, "a film"))
    echoed = one(handler, {"prompt": "a film", "echo": True, **greedy}).json["choices"][0]["text"]
    assert echoed == "a film" + alone[0]
    drawn = one(handler, {"prompt": "a film", "n": 3, "seed": 1, "max_tokens": 8}).json["choices"]
    assert len({choice["text"] for choice in drawn}) > 1
    wrong = one(handler, {"prompt": [10**6], **greedy})
    assert (
        wrong.status == 400
        and "has the token id 1000000; this model has tokens from 0 to" in wrong.json["error"]["message"]
    )


def test_a_stream_of_two_choices_is_the_two_texts(make) -> None:
    handler = make(end_ids=[])
    document = {
        "messages": [{"role": "user", "content": "a film"}],
        "max_tokens": 5,
        "n": 2,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = one(handler, document).json["choices"]
    assert len(whole[0]["logprobs"]["content"]) == 5
    assert all(each["logprob"] <= 0 for choice in whole for each in choice["logprobs"]["content"])
    told = told_events(one(handler, document | {"stream": True}))
    assert told[-1] == "[DONE]" and told.count("[DONE]") == 1
    for index in (0, 1):
        mine = [event["choices"][0] for event in told[:-1] if event["choices"][0]["index"] == index]
        assert "".join(one["delta"].get("content", "") for one in mine) == whole[index]["message"]["content"]
        told_values = [each for one in mine if one["logprobs"] for each in one["logprobs"]["content"]]
        assert told_values == whole[index]["logprobs"]["content"]
    for each in (each for choice in whole for each in choice["logprobs"]["content"]):
        values = [top["logprob"] for top in each["top_logprobs"]]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] >= each["logprob"]


def test_a_bias_decides_which_token_comes(handler) -> None:
    greedy = {"prompt": "a film", "max_tokens": 3, "temperature": 0, "logprobs": 1}
    (chosen,) = one(handler, greedy).json["choices"]
    assert [max(top.values()) for top in chosen["logprobs"]["top_logprobs"]] == chosen["logprobs"]["token_logprobs"]
    (forced,) = one(handler, greedy | {"logit_bias": {"70": 100}}).json["choices"]
    assert len(set(forced["logprobs"]["tokens"])) == 1 and forced["text"] != chosen["text"]
    assert all(len(top) == 2 for top in forced["logprobs"]["top_logprobs"])
    assert "'logit_bias' has the token id 99999999; this model has tokens from 0" in str(
        one(handler, greedy | {"logit_bias": {"99999999": 1}}).json
    )


def test_kserve_s_forms(handler) -> None:
    texts, parameters = ["a film", "good"], {"max_new_tokens": 4}
    expected = one(handler, {"inputs": texts, "parameters": parameters}).json
    v1 = one(handler, {"instances": texts, "parameters": parameters})
    assert v1.json == {"predictions": expected}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": texts}
    v2 = one(handler, {"inputs": [tensor], "parameters": parameters}).json
    assert [json.loads(one) for one in v2["outputs"][0]["data"]] == expected
    for parameters in (5, [{}], {"max_new_tokens": 0}, {"no": 1}):
        wrong = one(handler, {"instances": texts, "parameters": parameters})
        assert wrong.status == 400 and isinstance(wrong.json["error"], str), wrong.body
    wrong = one(handler, {"inputs": [tensor | {"shape": [3]}]})
    assert wrong.status == 400 and "has 2 values; its shape [3] wants 3" in wrong.json["error"]


def test_there_is_room_for_as_many_requests_as_for_texts(make) -> None:
    handler = make(max_queue=2)
    wire_of(handler)
    assert handler.conversations._bounds() == (2 + SESSION["max_running"], 64 << 20)


def test_a_request_s_own_deadline(make) -> None:
    handler = make(end_ids=[])
    found = one(handler, asked("a film", 6), REST | {"X-Deadline-Ms": "60000"})
    assert found.status == 200
    late = one(handler, asked("a film", 6), REST | {"x-deadline-ms": "soon"})
    assert late.status == 400 and "the header x-deadline-ms is 'soon'" in late.json["error"]["message"]
    join = handler.engine._join
    handler.engine._join = lambda jobs: (time.sleep(0.05), join(jobs))  # before the deadline is looked at
    late = one(handler, asked("a film", 6), REST | {"x-deadline-ms": "1"})
    assert late.status == 504 and "deadline passed before its first token" in late.json["error"]["message"]


class Metrics:
    """TorchServe's metrics cache."""

    marpress: Any

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def add_counter(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def add_metric(self, name: str, value: float, unit: str, metric_type: Any) -> None:
        self.found.setdefault(name, []).append(value)


def test_metrics(handler) -> None:
    cache = Metrics()
    handler.conversations = None
    wire_of(handler, cache)
    one(handler, asked(["a film", "good"], 4))
    cache.marpress.hand_over()
    found = cache.found
    assert found["marpress_requests"] == [1] and found["marpress_inputs"] == [2]
    assert found["marpress_generated_tokens"] == [8] and "marpress_request_errors" not in found
    assert found["marpress_prompt_tokens"] == [len(ids_of(handler, "a film")) + len(ids_of(handler, "good"))]
    assert len(found["marpress_ttft_seconds"]) == len(found["marpress_tpot_seconds"]) == 2
    assert found["marpress_tokens_per_second"][0] > 0
    one(handler, asked("a", 0))
    cache.marpress.hand_over()
    assert found["marpress_request_errors"] == [1] and len(found["marpress_generated_tokens"]) == 1
