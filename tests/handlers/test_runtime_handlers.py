"""A handler in the worker: batches against single requests, one request's mistake or failure, answers, metrics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from handlers.cpu import host_warnings
from handlers.inputs.text import Encoder, Text
from handlers.requirements import require
from handlers.tasks.encoder import EncoderHandler
from handlers.tasks.text.classification import TextClassificationHandler
from handlers.tasks.text.feature_extraction import FeatureExtractionHandler

JSON = {"content-type": "application/json"}


class Recorder:
    """Stands for TorchServe's metric cache: adds up the counters, keeps the rest."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self.others: dict[str, tuple[float, str]] = {}

    def add_counter(self, name: str, value: float) -> None:
        self.counters[name] = self.counters.get(name, 0) + value

    def add_metric(self, name: str, value: float, unit: str, metric_type: Any) -> None:
        self.others[name] = (value, metric_type.name)


def context(headers: list[dict[str, str]]) -> Any:
    """TorchServe's own context of a batch, one request per element."""
    from ts.context import Context, RequestProcessor

    made = Context("m", ".", {}, len(headers), None, "0.12.0")
    made.request_processor = [RequestProcessor(header) for header in headers]
    made.metrics = Recorder()
    return made


class Echo:
    """A session whose rows follow from the token ids alone: [first real id / 100, tokens / 10, −1]."""

    name = "echo"

    def __init__(self) -> None:
        self.fail_at: int | None = None
        self.nan_at: int | None = None

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        lengths = arrays["attention_mask"].sum(axis=1)
        if self.fail_at in lengths:
            raise RuntimeError("out of memory at 0xdeadbeef")
        rows = np.stack([arrays["input_ids"][:, 1] / 100, lengths / 10, -np.ones(len(lengths))], axis=1)
        rows[lengths == self.nan_at] = np.nan
        return rows.astype(np.float32)


@pytest.fixture
def handler(tiny_model) -> TextClassificationHandler:
    return made(TextClassificationHandler(), tiny_model, activation="softmax", labels=["negativ", "größer", "日本"])


def made(handler: Any, tiny_model: Any, **settings: Any) -> Any:
    handler.input = Text(Encoder(tiny_model() / "tokenizer.json", max_length=12, pad_id=0))
    handler.session = Echo()
    batching = {"token_budget": 64, "max_rows": 4, "run_cost": 2}
    handler.serving = {"max_inputs": 4, "max_length": 12, "batching": batching, **settings}
    return handler


def ask(handler: EncoderHandler, *documents: Any) -> tuple[list[Any], list[int], Any]:
    """The answers and statuses of one batch: dicts are sent as JSON, text and bytes as they are."""
    rows = [{"body": document} for document in documents]
    headers = [JSON if isinstance(document, dict) else {} for document in documents]
    where = context(headers)
    bodies = handler.handle(rows, where)
    assert len(bodies) == len(documents)
    assert all(isinstance(body, bytes) for body in bodies)
    statuses = [where.get_response_status(index)[0] for index in range(len(documents))]
    for index in range(len(documents)):
        assert where.get_response_content_type(index) == "application/json"
    return [json.loads(body) for body in bodies], statuses, where


def test_a_batch_answers_as_single_requests_do(handler, sentences):
    documents: list[Any] = [{"inputs": text, "parameters": {"top_k": 3}} for text in sentences]
    documents += [{"inputs": list(sentences[:4])}, {"inputs": {"text": "good", "text_pair": "bad"}}, b"plain text"]
    together, statuses, _ = ask(handler, *documents)
    assert set(statuses) == {200}
    for document, answer in zip(documents, together, strict=True):
        assert ask(handler, document)[0] == [answer]


@pytest.mark.parametrize(("task", "width"), [("text-classification", 2), ("feature-extraction", 32)])
def test_a_batch_equals_single_ones_through_a_real_model(tiny_model, sentences, task, width):
    from task_models import load_model

    from archiver.models.source import resolve_model
    from archiver.tasks.forward_workload import ModuleSession
    from handlers.architecture.outputs.encoder import EncoderWithHead

    kinds = {"text-classification": TextClassificationHandler, "feature-extraction": FeatureExtractionHandler}
    handler = made(kinds[task](), tiny_model, normalize=True, activation="softmax", labels=["a", "b"])
    pooling = "mean" if task == "feature-extraction" else None
    encoder = EncoderWithHead(load_model(resolve_model(tiny_model("bert", task)), task), pooling)
    handler.session = ModuleSession(encoder)
    asked = [{"inputs": text} for text in sentences]
    together, _, _ = ask(handler, *asked)
    for document, answer in zip(asked, together, strict=True):
        alone = ask(handler, document)[0][0]
        if task == "feature-extraction":
            assert len(answer) == width
            np.testing.assert_allclose(answer, alone, atol=1e-5)
            assert np.linalg.norm(answer) == pytest.approx(1, abs=1e-5)
        else:
            assert answer[0]["label"] == alone[0]["label"]
            assert answer[0]["score"] == pytest.approx(alone[0]["score"], abs=1e-5)


def test_one_bad_request_of_eight_is_that_requests_alone(handler):
    documents: list[Any] = [{"inputs": "good " * (i + 1)} for i in range(8)]
    expected, _, _ = ask(handler, *documents)
    for bad in ({"inputs": ["good", 3]}, b"{", b"", b"\xff", {"inputs": "a", "parameters": {"top_k": 0}}, [1, 2]):
        answers, statuses, where = ask(handler, *documents[:3], bad, *documents[4:])
        assert statuses == [200] * 3 + [400] + [200] * 4
        assert where.get_response_status(3) == (400, "Bad Request")
        assert answers[3].keys() == {"error"}
        assert answers[3]["error"]["code"] == 400
        assert len(answers[3]["error"]["message"]) > 20
        assert [a for i, a in enumerate(answers) if i != 3] == [a for i, a in enumerate(expected) if i != 3]


def test_a_failing_sub_batch_fails_its_requests_alone(handler):
    handler.session.fail_at = 7  # two special tokens and five words
    documents: list[Any] = [{"inputs": "good"}, {"inputs": "good " * 5}, {"inputs": ["bad", "bad " * 5]}, b"fine"]
    handler.serving["batching"] |= {"run_cost": 0}
    answers, statuses, _ = ask(handler, *documents)
    assert statuses == [200, 500, 500, 200]
    assert answers[1]["error"] == {"code": 500, "message": "the model failed on this request: RuntimeError"}
    assert answers[0][0]["label"]
    assert answers[3][0]["label"]
    with pytest.raises(RuntimeError, match="out of memory"):
        handler.find(handler_inputs("good " * 5), {})
    handler.session.run = None  # not even callable: every request fails, none takes the worker with it
    assert ask(handler, *documents)[1] == [500] * 4


def handler_inputs(*texts: str):
    from handlers.inputs.text import TextInput

    return [TextInput(text) for text in texts]


def test_an_answer_that_is_no_number_is_an_error(handler):
    handler.session.nan_at = 5
    answers, statuses, _ = ask(handler, {"inputs": "good"}, {"inputs": "one two three"}, {"inputs": "good bad"})
    assert statuses == [200, 500, 200]
    assert answers[1]["error"]["message"] == "the model's answer is not finite"


def test_what_cannot_be_foreseen_is_that_requests_alone(handler, monkeypatch):
    encode = handler.input.encoder.encode

    def break_on_bad(inputs, *, truncate=True):
        if inputs[0].text == "bad":
            raise MemoryError("no more")
        return encode(inputs, truncate=truncate)

    monkeypatch.setattr(handler.input.encoder, "encode", break_on_bad)
    answers, statuses, _ = ask(handler, {"inputs": "good"}, {"inputs": "bad"})
    assert statuses == [200, 500]
    assert answers[1]["error"]["message"] == "the request could not be read: MemoryError"


def test_top_k_is_sorted_and_takes_what_there_is(handler):
    document = {"inputs": "good"}
    (best,), _, _ = ask(handler, document)
    assert len(best) == 1
    for k, count in ((1, 1), (2, 2), (3, 3), (10**30, 3)):
        (found,), _, _ = ask(handler, document | {"parameters": {"top_k": k}})
        scores = [item["score"] for item in found]
        assert len(found) == count
        assert scores == sorted(scores, reverse=True)
        assert found[0] == best[0]
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    ids = handler.input.encoder.encode(handler_inputs("good"))[0].ids
    logits = np.array([ids[1] / 100, 0.3, -1.0])
    expected = np.exp(logits) / np.exp(logits).sum()
    by_label = {item["label"]: item["score"] for item in found}
    assert [by_label[label] for label in ("negativ", "größer", "日本")] == pytest.approx(expected, abs=1e-5)


def test_multi_label_scores_each_label_by_itself(handler):
    handler.serving["activation"] = "sigmoid"
    (found,), _, _ = ask(handler, {"inputs": "good", "parameters": {"top_k": 3}})
    assert {item["label"]: item["score"] for item in found}["日本"] == pytest.approx(1 / (1 + np.e), abs=1e-5)


def test_a_regression_answers_its_number(handler):
    handler.serving |= {"activation": "none", "labels": ["score"]}
    handler.session.run = lambda arrays: np.full((len(arrays["input_ids"]), 1), 4.25, np.float32)
    assert ask(handler, {"inputs": ["a", "b"]})[0] == [[[{"label": "score", "score": 4.25}]] * 2]


def test_compact_utf8_json(handler):
    where = context([JSON])
    (body,) = handler.handle([{"body": {"inputs": ["good"], "parameters": {"top_k": 3}}}], where)
    assert b" " not in body
    assert "größer".encode() in body
    assert b"\\u" not in body


def test_a_bare_input_gets_a_bare_answer(handler):
    (bare, listed, two), _, _ = ask(handler, {"inputs": "good"}, {"inputs": ["good"]}, {"inputs": ["good", "bad"]})
    assert listed == [bare]
    assert len(two) == 2


def test_too_long_is_cut_or_refused(handler):
    long = {"inputs": ["good", "good " * 11]}  # 13 tokens with the special ones
    kept, refused, fits = (
        long,
        long | {"parameters": {"truncation": False}},
        {"inputs": "good " * 10, "parameters": {"truncation": False}},
    )
    answers, statuses, _ = ask(handler, kept, refused, fits)
    assert statuses == [200, 400, 200]
    assert answers[1]["error"]["message"] == (
        "inputs[1] has 13 tokens; at most 12 are allowed with 'truncation': false"
    )
    assert ask(handler, kept)[1] == [200]  # the next request is cut again


def test_normalize(tiny_model):
    handler = made(FeatureExtractionHandler(), tiny_model, normalize=False)
    raw, unit = ({"inputs": "good", "parameters": {"normalize": value}} for value in (False, True))
    (plain, vector, normed), _, _ = ask(handler, {"inputs": "good"}, raw, unit)
    assert plain == vector
    np.testing.assert_allclose(np.array(plain) / np.linalg.norm(plain), normed, atol=1e-6)
    handler.serving["normalize"] = True
    assert ask(handler, {"inputs": "good"})[0] == [normed]
    handler.session.run = lambda arrays: np.zeros((len(arrays["input_ids"]), 3), np.float32)
    assert ask(handler, {"inputs": "good"})[0] == [[0.0, 0.0, 0.0]]
    assert ask(handler, {"inputs": "good", "parameters": {"top_k": 1}})[1] == [400]


def test_fewer_dimensions(tiny_model):
    """By hand: of (3, 4, 12) the first two are (3, 4), at length 1 (0.6, 0.8)."""
    handler = made(FeatureExtractionHandler(), tiny_model, normalize=True)
    handler.session.run = lambda arrays: np.tile(np.float32([3, 4, 12]), (len(arrays["input_ids"]), 1))
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({"dimensions": 2}, [0.6, 0.8]),
        ({"dimensions": 2, "normalize": False}, [3.0, 4.0]),
        ({"dimensions": 1}, [1.0]),
        ({"dimensions": 3}, [3 / 13, 4 / 13, 12 / 13]),
    ]
    found, statuses, _ = ask(handler, *({"inputs": "good", "parameters": given} for given, _ in cases))
    assert statuses == [200] * 4
    for vector, (_, expected) in zip(found, cases, strict=True):
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    (refused,), statuses, _ = ask(handler, {"inputs": "good", "parameters": {"dimensions": 4}})
    assert statuses == [400]
    assert refused["error"]["message"] == "'dimensions' is 4; this model's vectors have 3: allowed: 1 to 3"


def test_metrics_add_up(handler):
    handler.session.fail_at = 9
    documents: list[Any] = [{"inputs": ["good", "good bad"]}, {"inputs": "good " * 7}, b"{", b"bad bad bad"]
    _, statuses, where = ask(handler, *documents)
    assert statuses == [200, 500, 400, 200]
    where.metrics.marpress.hand_over()
    counted = where.metrics.counters
    assert counted["marpress_requests"] == 4
    assert counted["marpress_request_errors"] == 2
    assert counted["marpress_inputs"] == 4
    assert counted["marpress_tokens"] == 3 + 4 + 9 + 5
    assert counted["marpress_computed_tokens"] >= counted["marpress_tokens"]
    assert counted["marpress_batches"] == 1
    waste = 1 - counted["marpress_tokens"] / counted["marpress_computed_tokens"]
    assert where.metrics.others["marpress_padding_waste"] == (pytest.approx(waste, abs=1e-4), "GAUGE")
    assert where.metrics.others["marpress_batch_size"] == (4, "GAUGE")
    assert where.metrics.others["marpress_batch_seconds"][1] == "HISTOGRAM"


def test_a_batch_of_mistakes_alone_runs_nothing(handler):
    _, statuses, where = ask(handler, b"{", b"")
    assert statuses == [400, 400]
    assert "marpress_tokens" not in where.metrics.counters
    assert "marpress_padding_waste" not in where.metrics.others


def test_a_missing_or_old_package_is_one_sentence():
    with pytest.raises(RuntimeError, match=r'needs no_such_package>=1.0, which .* run `pip install "no_such_package'):
        require("no_such_package", "no_such_package>=1.0")
    with pytest.raises(RuntimeError, match=r"needs numpy>=99.1, this host has \d.*pip install"):
        require("numpy", "numpy>=99.1")
    assert require("numpy", "numpy>=1.24") is np


def test_a_host_without_what_the_choice_relied_on_is_warned_of(monkeypatch):
    monkeypatch.setattr("handlers.cpu.host_isa", lambda: ["avx2"])
    (warning,) = host_warnings({"int8": True}, ["avx2", "avx512_vnni"])
    assert "int8 dot products (avx512_vnni); this host has none of them" in warning
    assert host_warnings({"int8": False}, ["avx512_vnni"]) == []
    assert host_warnings({"int8": True}, ["avx2"]) == []
    (warning,) = host_warnings({"int8": False, "bf16": True}, [])
    assert "hosts that are fast in bf16 (amx_bf16, avx512_bf16)" in warning
    monkeypatch.setattr("handlers.cpu.host_isa", lambda: ["avx2", "avx_vnni"])
    assert host_warnings({"int8": True}, ["avx512_vnni"]) == []


def test_loading_fails_with_a_full_sentence(tmp_path):
    where = context([])
    where._system_properties["model_dir"] = str(tmp_path)
    where.model_yaml_config = {"minWorkers": 1}
    with pytest.raises(RuntimeError, match=r"marpress.json cannot be read .*this is no marpress archive"):
        TextClassificationHandler().initialize(where)
