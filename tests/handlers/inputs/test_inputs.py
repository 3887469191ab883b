"""A kind of input that is no text: one class, and the life of a batch serves it as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from handlers.base import BatchHandler, Found
from handlers.errors import BadRequest
from handlers.examples import check_examples
from handlers.inputs.base import Input
from handlers.inputs.checks import Parameter, is_bool, kind_of
from handlers.protocols.document import body_bytes


class Signal(Input[bytes, np.ndarray]):
    """Raw bytes, each a sample; in JSON a list of numbers as {"samples": […]}."""

    allowed: ClassVar[str] = "allowed: raw bytes"
    parameters: ClassVar[dict[str, Parameter]] = {"invert": Parameter(is_bool, "true or false")}

    def decode(self, value: Any, where: str) -> bytes:
        if isinstance(value, bytes):
            return value
        if not isinstance(value, dict):
            raise BadRequest(f"{where} is {kind_of(value)}; bytes are expected")
        return bytes(value["samples"])

    def encode(self, values: Sequence[bytes], parameters: Mapping[str, Any]) -> list[np.ndarray]:
        sign = -1.0 if parameters.get("invert") else 1.0
        return [sign * np.frombuffer(value, np.uint8).astype(np.float32) for value in values]

    def size(self, item: np.ndarray) -> int:
        return len(item)

    def collate(self, items: Sequence[np.ndarray], size: int, rows: int) -> dict[str, np.ndarray]:
        found = np.zeros((rows, size, 1), np.float32)
        for row, item in enumerate(items):
            found[row, : len(item), 0] = item
        return {"signal": found}

    def to_stored(self, value: bytes) -> Any:
        return {"samples": list(value)}

    def from_stored(self, stored: Any) -> bytes:
        return bytes(stored["samples"])


class Doubling:
    """Two numbers for each sample: the output keeps the padded length, and has three axes."""

    name = "doubling"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        self.shapes.append(arrays["signal"].shape)
        return np.concatenate([arrays["signal"] * 2, arrays["signal"] + 1], axis=2)


class DoublingHandler(BatchHandler[bytes]):
    runtime = Doubling
    parameters: ClassVar[dict[str, Parameter]] = {}

    def make_input(self, folder: Path) -> Signal:
        return Signal()

    def answers(self, found: Sequence[Found[bytes]], parameters: Mapping[str, Any]) -> list[Any]:
        return [one.outputs[0][: len(one.items[0])].tolist() for one in found]

    def compare(self, stored: Any, found: Any) -> float:
        return 0.0 if stored == found else float("inf")


@pytest.fixture
def handler(tmp_path) -> DoublingHandler:
    found = DoublingHandler()
    batching = {"token_budget": 16, "max_rows": 2, "run_cost": 0, "row_sizes": [2]}
    found.serving = {"session": {}, "max_inputs": 4, "batching": batching}
    found.input = found.make_input(tmp_path)
    found.load(tmp_path, threads=1)
    return found


def ask(handler: DoublingHandler, *rows: Mapping[str, Any], content_type: str = "image/png") -> tuple[list[Any], Any]:
    from ts.context import Context, RequestProcessor

    where = Context("m", ".", {}, len(rows), None, "0.12.0")
    where.request_processor = [RequestProcessor({"content-type": content_type}) for _ in rows]
    where.metrics = None
    return [json.loads(body) for body in handler.handle(rows, where)], where


def test_bytes_that_are_no_text_are_an_input(handler):
    for body in (b"\x89P", bytearray(b"\x89P")):
        (answer,), where = ask(handler, {"body": body})
        assert where.get_response_status(0)[0] == 200
        assert answer == [[274.0, 138.0], [160.0, 81.0]]
    document = json.dumps({"inputs": [{"samples": [1]}, {"samples": [2, 3]}], "parameters": {"invert": True}})
    assert ask(handler, {"body": document.encode()}, content_type="application/json")[0] == [
        [[[-2.0, 0.0]], [[-4.0, -1.0], [-6.0, -2.0]]]
    ]


def test_each_item_gets_its_own_part_of_its_sub_batch(handler):
    rows = [{"body": bytes([n] * n)} for n in (5, 1, 3, 1)]
    answers, _ = ask(handler, *rows)
    assert answers == [[[2.0 * n, n + 1.0]] * n for n in (5, 1, 3, 1)]
    assert sorted(handler.session.shapes) == [(2, 1, 1), (2, 5, 1)]  # of like size together
    assert handler.respond([b"\x02"]) == [[[4.0, 3.0]]]


def test_its_mistakes_are_told_in_its_own_words(handler):
    answers, where = ask(handler, {"body": b""}, {"body": b'{"inputs": "text"}'}, {"body": b"\x01"}, content_type="")
    assert [where.get_response_status(index)[0] for index in range(3)] == [400, 400, 200]
    assert answers[0]["error"]["message"] == "the body is empty; allowed: raw bytes"
    assert answers[1]["error"]["message"] == "inputs is a string; bytes are expected"


def test_stored_examples_are_read_and_compared_by_the_task(handler):
    stored = [{"input": {"samples": [7]}, "answer": [[14.0, 8.0]]}]
    assert check_examples(handler, stored, 0.0) == []
    stored[0]["answer"] = [[14.0, 9.0]]
    assert check_examples(handler, stored, 0.0) == [
        "example 0 alone differs by inf, allowed 0",
        "example 0 in a batch differs by inf, allowed 0",
    ]


class WindowHandler(DoublingHandler):
    """An input is cut into windows of two samples; its answer is the first number of each sample."""

    def prepare(self, values: Sequence[bytes], parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        whole = self.input.encode(values, parameters)
        return [[item[start : start + 2] for start in range(0, len(item), 2)] for item in whole]

    def answers(self, found: Sequence[Found[bytes]], parameters: Mapping[str, Any]) -> list[Any]:
        return [
            [float(row[0]) for item, output in zip(one.items, one.outputs, strict=True) for row in output[: len(item)]]
            for one in found
        ]


@pytest.fixture
def windows(tmp_path, handler) -> WindowHandler:
    found = WindowHandler()
    found.serving, found.input, found.session = {**handler.serving, "task": "doubling"}, handler.input, handler.session
    return found


def test_several_items_of_an_input_come_back_to_it(windows):
    rows = [{"body": bytes(range(1, n + 1))} for n in (5, 1, 4, 3)]
    answers, _ = ask(windows, *rows)
    assert answers == [[2.0 * i for i in range(1, n + 1)] for n in (5, 1, 4, 3)]
    found = windows.find([b"\x01\x02\x03", b"\x04"], {})
    assert [one.value for one in found] == [b"\x01\x02\x03", b"\x04"]
    assert [len(one.items) for one in found] == [len(one.outputs) for one in found] == [2, 1]


def test_a_request_may_make_so_many_items(windows, monkeypatch):
    monkeypatch.setattr("handlers.base.MAX_ITEMS", 3)
    windows.serving["max_inputs"] = 3
    answers, where = ask(windows, {"body": b"\x01" * 7}, {"body": b"\x01" * 6})
    assert [where.get_response_status(index)[0] for index in range(2)] == [400, 200]
    assert "makes 4 runs of the model" in answers[0]["error"]["message"]
    assert "at most 3 are allowed" in answers[0]["error"]["message"]


def test_a_body_may_have_so_many_bytes(windows, monkeypatch):
    monkeypatch.setattr(Signal, "max_bytes", 4)
    answers, where = ask(windows, {"body": b"\x01" * 5}, {"body": b"\x01" * 4})
    assert [where.get_response_status(index) for index in range(2)] == [
        (413, "Request Entity Too Large"),
        (200, None),
    ]
    assert answers[0]["error"] == {"code": 413, "message": "the body has 5 bytes; at most 4 are allowed"}
    # JSON comes parsed: what the request says of its length counts.
    assert body_bytes({"body": {"inputs": "x"}}, {"Content-Length": "12"}) == 12
    assert body_bytes({"data": b"123", "body": bytearray(b"45")}, {"content-length": "no number"}) == 5
