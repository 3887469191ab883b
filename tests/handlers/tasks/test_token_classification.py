"""token-classification: requests, long texts in windows, stored answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask, refusal

from handlers.examples import check_examples
from handlers.tasks.text.token_classification import TokenClassificationHandler

LABELS = ["O", "B-X", "I-X"]
LONG = "the Zoe\u0308 film 👩‍👩‍👧 is very good, one long dull story without sound and " * 5


class ByToken:
    """Logits that depend on a token's id alone, so that windows must not matter; [rows, tokens, labels]."""

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.broken = False

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        ids = arrays["input_ids"]
        self.shapes.append(ids.shape)
        found = np.stack([np.sin(ids * (label + 1.0)) * 3 for label in range(len(LABELS))], axis=-1)
        return np.full_like(found, np.nan, np.float32) if self.broken else found.astype(np.float32)


@pytest.fixture
def handler(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., TokenClassificationHandler]:
    """Factory: a handler whose windows have `max_length` tokens."""

    def make(max_length: int = 16, kind: str = "bert") -> TokenClassificationHandler:
        folder = tiny_model(kind)
        made = TokenClassificationHandler()
        made.runtime = ByToken
        made.serving = {
            "session": {},
            "max_inputs": 4,
            "batching": {"token_budget": 64, "max_rows": 4},
            "max_length": max_length,
            "pad_id": 0,
            "labels": LABELS,
            "unknown_token": "[UNK]" if kind == "bert" else "<unk>",
        }
        # An archive's tokenizer.json; without requirements.txt beside it any version of tokenizers will do.
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        (tmp_path / "requirements.txt").write_text("tokenizers\n")
        made.input = made.make_input(tmp_path)
        made.load(tmp_path, threads=1)
        return made

    return make


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_a_long_text_is_answered_as_if_it_fitted(
    handler: Callable[..., TokenClassificationHandler], kind: str, strategy: str
) -> None:
    parameters = {"aggregation_strategy": strategy}
    whole = handler(512, kind).respond([LONG], parameters)
    cut = handler(16, kind)
    assert cut.respond([LONG], parameters) == whole
    assert len(cut.session.shapes) > 1 and max(shape[1] for shape in cut.session.shapes) <= 16
    for entity in whole[0]:
        assert 0 <= entity["start"] <= entity["end"] <= len(LONG)
    if strategy == "none":
        assert [entity["index"] for entity in whole[0]] == sorted({entity["index"] for entity in whole[0]})


def test_requests_of_one_batch_get_their_own_answers(handler: Callable[..., TokenClassificationHandler]) -> None:
    made = handler()
    simple = {"aggregation_strategy": "simple"}
    answers = ask(
        made,
        {"inputs": "the film is good"},
        {"inputs": ["the film", LONG], "parameters": simple},
        {"inputs": 7},
        {"inputs": "the film is good", "parameters": {"ignore_labels": []}},
        b"the film is good",
    )
    assert [status for status, _ in answers] == [200, 200, 400, 200, 200]
    assert answers[0][1] == answers[4][1] == made.respond(["the film is good"])[0]
    assert answers[1][1] == made.respond(["the film", LONG], simple)
    assert len(answers[3][1]) == 4 and list(answers[3][1][0]) == ["entity", "score", "index", "word", "start", "end"]
    assert set(answers[1][1][1][0]) == {"entity_group", "score", "word", "start", "end"}
    assert answers[2][1]["error"]["message"] == "inputs is a number; a text is expected"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": "a", "parameters": {"aggregation_strategy": "best"}}, 'is "best"; allowed: none, simple, first,'),
        ({"inputs": "a", "parameters": {"aggregation_strategy": ["none"]}}, "is a list; allowed: none, simple"),
        ({"inputs": "a", "parameters": {"ignore_labels": "O"}}, 'is "O"; allowed: a list of labels'),
        ({"inputs": "a", "parameters": {"stride": -1}}, "is -1; allowed: a whole number from 0"),
        ({"inputs": "a", "parameters": {"stride": 14}}, "windows cannot overlap by 14 tokens: 14 of their 16 tokens"),
        (
            {"inputs": "a", "parameters": {"truncation": True}},
            "unknown parameter 'truncation'; allowed: 'aggregation_str",
        ),
        ({"inputs": ["a", "  "]}, "inputs[1] is empty"),
        ({"inputs": {"text": "a"}}, "inputs is an object; a text is expected"),
        ({"inputs": "dull " * 20_000}, "inputs[0] has 20000 tokens and would take 2000 windows of 16"),
        (b"\xff", "the body is not UTF-8"),
    ],
)
def test_mistakes_are_told(handler: Callable[..., TokenClassificationHandler], body: Any, message: str) -> None:
    assert message in refusal(handler(), body)


def test_stored_answers_hold_every_score(handler: Callable[..., TokenClassificationHandler]) -> None:
    made = handler()
    answers = made.respond(["the film", LONG], made.full_parameters)
    assert sum(answers[0][0].values()) == pytest.approx(1, abs=1e-4) and list(answers[0][0]) == LABELS
    stored = [
        {"input": made.input.to_stored(text), "answer": json.loads(json.dumps(answer))}
        for text, answer in zip(["the film", LONG], answers, strict=True)
    ]
    assert check_examples(made, stored, 0.001) == []
    stored[1]["answer"][-1]["O"] += 0.5
    assert check_examples(made, stored, 0.001) == [
        "example 1 alone differs by 0.5, allowed 0.001",
        "example 1 in a batch differs by 0.5, allowed 0.001",
    ]
    assert made.compare(answers[0], [1]) == float("inf")


def test_numbers_that_are_none_are_an_error_of_the_model(handler: Callable[..., TokenClassificationHandler]) -> None:
    made = handler()
    made.session.broken = True
    ((status, answer),) = ask(made, {"inputs": "the film"})
    assert (status, answer["error"]["message"]) == (500, "the model's answer is not finite")
