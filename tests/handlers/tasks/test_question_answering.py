"""question-answering: both forms of a request, long contexts in windows, stored answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ask, refusal

from handlers.examples import check_examples
from handlers.inputs.texts.question import Question
from handlers.tasks.text.question_answering import QuestionAnsweringHandler

CONTEXT = "the dog runs fast, the cat eats! " * 8 + "a great Zoe\u0308 👩‍👩‍👧 actor " + "in a poor plot " * 9
ASKED = {"question": "who is great?", "context": CONTEXT}


class Points:
    """Points to one token id as an answer's first, to another as its last; [rows, tokens, 2]."""

    first, last = 0, 0

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.broken = False

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        ids = arrays["input_ids"]
        self.shapes.append(ids.shape)
        found = np.stack([ids == self.first, ids == self.last], axis=-1) * np.float32(9)
        return np.full_like(found, np.nan) if self.broken else found.astype(np.float32)


@pytest.fixture
def handler(tiny_model: Callable[..., Path], tmp_path: Path) -> QuestionAnsweringHandler:
    """Windows of 32 tokens; the model points from "great" to "actor"."""
    folder = tiny_model("bert")
    made = QuestionAnsweringHandler()
    made.runtime = Points
    made.serving = {
        "session": {},
        "max_inputs": 4,
        "batching": {"token_budget": 64, "max_rows": 4},
        "max_length": 32,
        "pad_id": 0,
        "null_token": "[CLS]",
    }
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "requirements.txt").write_text("tokenizers\n")
    made.input = made.make_input(tmp_path)
    made.load(tmp_path, threads=1)
    made.session.first, made.session.last = (
        made.input.encoder.tokenizer.token_to_id(word) for word in ("great", "actor")
    )
    return made


def test_a_long_context_is_read_to_its_end(handler: QuestionAnsweringHandler) -> None:
    (answer,) = handler.respond([Question(**ASKED)])
    assert answer["answer"] == "great Zoe\u0308 👩‍👩‍👧 actor" == CONTEXT[answer["start"] : answer["end"]]
    assert answer["score"] > 0.5
    assert len(handler.session.shapes) > 1 and max(shape[1] for shape in handler.session.shapes) <= 32


def test_both_forms_are_answered_alike(handler: QuestionAnsweringHandler) -> None:
    two = [ASKED, {"question": "what?", "context": "a great actor"}]
    answers = ask(
        handler,
        {"inputs": ASKED},
        ASKED,
        {**ASKED, "top_k": 3},
        {"inputs": ASKED, "parameters": {"top_k": 3}},
        {"inputs": two},
        {"inputs": two, "parameters": {"top_k": 2, "handle_impossible_answer": True, "align_to_words": False}},
        {"question": "who?"},
    )
    assert [status for status, _ in answers] == [200] * 6 + [400]
    assert answers[0][1] == answers[1][1] and set(answers[0][1]) == {"score", "start", "end", "answer"}
    assert answers[2][1] == answers[3][1] and len(answers[2][1]) == 3
    assert [answer["answer"] for answer in answers[4][1]] == [answers[0][1]["answer"], "great actor"]
    assert all(len(one) == 2 for one in answers[5][1])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"question": "who?"}, 'inputs has no \'context\'; allowed: {"inputs": {"question"'),
        ({"context": "a"}, "inputs has no 'question'"),
        ({"inputs": {}}, "inputs has no 'question' and no 'context'"),
        ({"inputs": "who?"}, "inputs is a string; an object with 'question' and 'context' is expected"),
        ({"inputs": [ASKED, 7]}, "inputs[1] is a number; an object with"),
        ({"question": "", "context": "a"}, "inputs.question is empty"),
        ({"question": "who?", "context": " "}, "inputs.context is empty"),
        ({"question": ["who?"], "context": "a"}, "inputs.question is a list; a text is expected"),
        ({"question": "who?", "context": "a", "answer": 1}, "unknown parameter 'answer'"),
        ({"inputs": {**ASKED, "id": 1}}, "inputs has the unknown key 'id'; allowed: 'question', 'context'"),
        ({"question": "film " * 17, "context": "a"}, "inputs[0].question has 17 tokens; at most 16 are allowed"),
        ({**ASKED, "top_k": 0}, "parameter 'top_k' is 0; allowed: a whole number from 1 to 1000"),
        ({**ASKED, "max_answer_len": 1.5}, "parameter 'max_answer_len' is 1.5; allowed: a whole number from 1"),
        ({**ASKED, "max_seq_len": 33}, "parameter 'max_seq_len' is 33; at most 32 tokens are allowed"),
        ({**ASKED, "doc_stride": 30}, "windows cannot overlap by 30 tokens"),
        ({"question": "who?", "context": "film " * 40_000}, "inputs[0].context has 40000 tokens and would take"),
        (b"who?", "inputs is bytes; an object with 'question' and 'context' is expected"),
        (b"\xff\xfe", "inputs is bytes; an object with 'question' and 'context' is expected"),
    ],
)
def test_mistakes_are_told(handler: QuestionAnsweringHandler, body: Any, message: str) -> None:
    assert message in refusal(handler, body)


def test_a_long_question_is_cut_where_a_request_says_so(handler: QuestionAnsweringHandler) -> None:
    asked = {"question": "film " * 17, "context": "a great actor", "max_question_len": 4}
    ((status, answer),) = ask(handler, asked)
    assert (status, answer["answer"]) == (200, "great actor")
    assert handler.session.shapes[-1][1] == 4 + 3 + 3
    ask(handler, {**ASKED, "max_seq_len": 16})
    assert max(shape[1] for shape in handler.session.shapes[-3:]) <= 16


def test_stored_answers_hold_every_probability(handler: QuestionAnsweringHandler) -> None:
    value = Question(**ASKED)
    (answer,) = handler.respond([value], handler.full_parameters)
    stored = [{"input": handler.input.to_stored(value), "answer": json.loads(json.dumps(answer))}]
    assert check_examples(handler, stored, 0.001) == []
    assert handler.input.from_stored(stored[0]["input"]) == value
    stored[0]["answer"][0][0] += 1
    assert check_examples(handler, stored, 0.001)[0].startswith("example 0 alone differs by ")
    assert handler.compare(answer, 3) == handler.compare(answer, answer[:1]) == float("inf")


def test_numbers_that_are_none_are_an_error_of_the_model(handler: QuestionAnsweringHandler) -> None:
    handler.session.broken = True
    ((status, answer),) = ask(handler, ASKED)
    assert (status, answer["error"]["message"]) == (500, "the model's answer is not finite")
