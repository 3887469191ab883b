"""Queries with texts, sentences to compare, labels that a request brings, masked texts: read, refused, encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import _wordpiece_tokenizer

from handlers.errors import BadRequest
from handlers.inputs.checks import checked_parameters
from handlers.inputs.text import Encoder, Text
from handlers.inputs.texts.against import Against, Query, SourceSentence
from handlers.inputs.texts.candidates import Candidates, CandidateText, is_labels, is_template, labels_of
from handlers.inputs.texts.masked import PLACES, Masked, MaskedText


@pytest.fixture(scope="module")
def tokenizer_json() -> bytes:
    return _wordpiece_tokenizer().backend_tokenizer.to_str().encode()


def encoder(tokenizer_json: bytes, cut: str = "longest_first", max_length: int = 16) -> Encoder:
    return Encoder(tokenizer_json, max_length=max_length, pad_id=0, cut=cut)


def test_a_query_with_its_texts(tokenizer_json: bytes) -> None:
    query = Query(encoder(tokenizer_json))
    value = query.decode({"query": "the cat", "texts": ["the dog", "music"]}, "inputs")
    assert value == Against("the cat", ("the dog", "music"))
    assert query.from_stored(query.to_stored(value)) == value
    items = query.encode([value], {})
    assert [item.type_ids for item in items] == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_a_sentence_with_others(tokenizer_json: bytes) -> None:
    source = SourceSentence(encoder(tokenizer_json))
    value = source.decode({"source_sentence": "the cat", "sentences": ["music"]}, "inputs")
    assert source.from_stored(source.to_stored(value)) == value == Against("the cat", ("music",))
    assert [len(item.ids) for item in source.encode([value], {})] == [4, 3]


def test_what_may_not_be_cut_is_refused_by_its_name(tokenizer_json: bytes) -> None:
    query, source = Query(encoder(tokenizer_json, max_length=8)), SourceSentence(encoder(tokenizer_json, max_length=8))
    value = Against("the cat", ("the dog", "the dog " * 9))
    assert [len(item.ids) for item in query.encode([value], {"truncate": True})] == [7, 8]
    for parameters in ({"truncate": False}, {"truncation": False}):
        with pytest.raises(BadRequest, match=r"texts\[1\] with the query has 23 tokens; at most 8"):
            query.encode([value], parameters)
    with pytest.raises(BadRequest, match=r"sentences\[1\] has 20 tokens"):
        source.encode([value], {"truncation": False})
    with pytest.raises(BadRequest, match="source_sentence has 20 tokens"):
        source.encode([Against(value.others[1], ("the cat",))], {"truncation": False})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a text", r"inputs is a string; an object with 'query' and 'texts' is expected; allowed: \{\"query\""),
        (b"a text", "inputs is plain text; an object"),
        ({"query": "a"}, "inputs has no 'texts'; allowed"),
        ({}, "inputs has no 'query', 'texts'"),
        ({"query": "a", "texts": []}, "inputs.texts is an empty list; at least one text"),
        ({"query": "a", "texts": "b"}, "inputs.texts is a string; a list of texts is expected"),
        ({"query": "a", "texts": ["b", ""]}, r"inputs.texts\[1\] is empty"),
        ({"query": "a", "texts": ["b", 1]}, r"inputs.texts\[1\] is a number"),
        ({"query": " ", "texts": ["b"]}, "inputs.query is empty"),
        ({"query": "a", "texts": ["\ud800"]}, "lone surrogate"),
        ({"query": "a", "texts": ["b"], "top": 1}, "unknown key 'top'; allowed: 'query', 'texts'"),
    ],
)
def test_what_is_no_query(tokenizer_json: bytes, body: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        Query(encoder(tokenizer_json)).decode(body, "inputs")


def test_labels_and_templates() -> None:
    assert labels_of("good, bad ,, ") == ["good", "bad"]
    assert [is_labels(value) for value in (["a"], "a", "a,b", [], "", ",", ["a", ""], [1], None, {"a": 1})] == [
        *[True] * 3,
        *[False] * 7,
    ]
    given = ("It is {}.", "{}", "no place", "{} and {}", "{0}", "{:>9999999}", "{{}}", "", 7)
    assert [is_template(value) for value in given] == [True, True, *[False] * 7]


def test_every_text_with_every_label(tokenizer_json: bytes) -> None:
    kind = CandidateText(encoder(tokenizer_json, "only_first"))
    parameters = {"candidate_labels": ["good", "bad"], "hypothesis_template": "the film is {}"}
    value = kind.decode({"sequences": ["the cat", "music"]}, "inputs")
    assert value == Candidates(("the cat", "music"), "sequences")
    (items,) = kind.encode_each([value], parameters)
    tokens = [[kind.encoder.tokenizer.id_to_token(i) for i in item.ids] for item in items]
    assert tokens[0] == ["[CLS]", "the", "cat", "[SEP]", "the", "film", "is", "good", "[SEP]"]
    assert [row[-2] for row in tokens[::2]] == ["good", "good"]
    assert [row[1] for row in tokens] == ["the", "the", "music", "music"]


def test_an_input_goes_out_as_a_request_has_it(tokenizer_json: bytes) -> None:
    query = Query(encoder(tokenizer_json))
    assert query.to_request(Against("the cat", ("music",))) == ({"query": "the cat", "texts": ["music"]}, {})


def test_a_text_may_bring_its_own_labels(tokenizer_json: bytes) -> None:
    kind = CandidateText(encoder(tokenizer_json, "only_first"))
    value = kind.decode({"text": "the cat", "candidate_labels": "good, bad", "hypothesis_template": "a {}"}, "inputs")
    assert value == Candidates(("the cat",), labels=("good", "bad"), template="a {}")
    assert kind.from_stored(kind.to_stored(value)) == value
    assert kind.decode(kind.to_stored(value), "inputs") == value  # a stored example is a request
    assert kind.to_request(value) == (kind.to_stored(value), {})
    items = kind.encode([value], {"candidate_labels": ["music"]})
    assert [kind.encoder.tokenizer.id_to_token(item.ids[-2]) for item in items][0] == "good"
    assert len(items) == 2


def test_the_text_is_cut_and_never_the_hypothesis(tokenizer_json: bytes) -> None:
    kind = CandidateText(encoder(tokenizer_json, "only_first", 8))
    (item,) = kind.encode(
        [kind.decode("the cat " * 20, "inputs")], {"candidate_labels": "good", "hypothesis_template": "a {}"}
    )
    assert len(item.ids) == 8
    assert [kind.encoder.tokenizer.id_to_token(i) for i in item.ids][-3:] == ["a", "good", "[SEP]"]
    with pytest.raises(BadRequest, match="a label's hypothesis leaves no room for the text among 8 tokens"):
        kind.encode([kind.decode("the cat", "inputs")], {"candidate_labels": "good " * 9})


@pytest.mark.parametrize(
    ("body", "parameters", "said"),
    [
        ("a", {}, "the parameter 'candidate_labels' is missing; allowed"),
        ("a", {"candidate_labels": []}, "parameter 'candidate_labels' is a list; allowed: a list of labels"),
        ("a", {"candidate_labels": ["b"], "hypothesis_template": "none"}, "with one {} where the label goes"),
        ("a", {"candidate_labels": ["b"], "multi_label": 1}, "parameter 'multi_label' is 1; allowed: true"),
        ("a", {"labels": ["b"]}, "unknown parameter 'labels'; allowed: 'candidate_labels', 'hypothesis_template'"),
        ({"sequences": []}, {"candidate_labels": "b"}, "'sequences' is an empty list"),
        ({"sequences": ["b", None]}, {"candidate_labels": "b"}, r"sequences\[1\] is null"),
        ({"a": "b"}, {"candidate_labels": "b"}, "inputs is an object with 'a'; a text is expected"),
        ({"text": "b", "a": 1}, {}, "inputs has the unknown key 'a'; allowed: 'text', 'candidate_labels'"),
        ({"text": "b", "candidate_labels": []}, {}, "inputs.candidate_labels is a list; allowed: a list of labels"),
        ({"text": "b"}, {}, "the parameter 'candidate_labels' is missing"),
        (3, {"candidate_labels": "b"}, "inputs is a number; a text is expected"),
    ],
)
def test_what_cannot_be_classified(tokenizer_json: bytes, body: Any, parameters: dict[str, Any], said: str) -> None:
    kind = CandidateText(encoder(tokenizer_json, "only_first"))
    with pytest.raises(BadRequest, match=said):
        kind.encode([kind.decode(body, "inputs")], checked_parameters(parameters, kind.parameters))


def test_masks_by_hand(tokenizer_json: bytes) -> None:
    """Six masks go by four a row; rows that ask for fewer ask for their own again."""
    kind = MaskedText(Text(encoder(tokenizer_json)), "[MASK]")
    (six,), (one,) = [kind.encode_each([text], {}) for text in ("[MASK] " * 6, "the [MASK] cat")]
    assert [item.places for item in six] == [(1, 2, 3, 4), (5, 6)]
    assert one == [Masked(one[0].encoded, (2,))]
    arrays = kind.collate([six[1], one[0]], 8, 4)
    np.testing.assert_array_equal(arrays["places"], [[5, 6, 5, 6], [2] * 4, [0] * 4, [0] * 4])
    assert kind.collate([one[0]], 8, 1)["places"].tolist() == [[2]]
    assert {name: value.shape for name, value in arrays.items() if name != "places"} == {
        name: (4, 8) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert PLACES == 4


def test_texts_without_a_mask(tokenizer_json: bytes, tmp_path: Path) -> None:
    kind = MaskedText(Text(encoder(tokenizer_json)), "[MASK]")
    with pytest.raises(
        BadRequest, match=r"inputs\[1\] has no mask token among its first 16 tokens; write \[MASK\] where"
    ):
        kind.encode(["a [MASK]", "the cat"], {})
    with pytest.raises(BadRequest, match="inputs has no mask token"):
        kind.encode(["the cat " * 20 + "[MASK]"], {})
