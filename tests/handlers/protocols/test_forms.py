"""Forms beside Hugging Face's, to tasks of one pass: OpenAI's embeddings, reranking, KServe v1 and v2, binary tensors."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool
from handlers.inputs.texts.against import Query
from handlers.protocols import forms
from handlers.protocols.kserve import forms as kserve
from handlers.protocols.openai import embeddings, rerank
from handlers.protocols.request import Request, Spec, Told

PATHS = {"embeddings": embeddings.parse, "rerank": rerank.parse}


def decode(value: Any, where: str) -> Any:
    if isinstance(value, (int, float)):
        raise BadRequest(f"{where} is a number")
    return value


def spec(fields: tuple[str, ...] = (), **more: Any) -> Spec:
    known = {"flag": Parameter(is_bool, "true or false")}
    return Spec(
        **{"decode": decode, "parameters": known, "max_inputs": 4, "allowed": "…", "fields": fields} | more, model="m"
    )


def parse(document: Any, path: str = "", **more: Any) -> Request:
    return forms.parse(document, path, PATHS, spec(**more))


def rendered(request: Request, answers: list[Any], tokens: int = 7) -> Any:
    assert request.form is not None
    return request.form.render(answers, tokens)


# ---- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "path"),
    [("embeddings", "embeddings"), ("v1/embeddings", "embeddings"), ("/v2/rerank/", "rerank"), ("v1", ""), ("", "")],
)
def test_a_path_is_what_stands_behind_the_base(found: str, path: str) -> None:
    assert forms.path_of({"Url_Path": found}) == path


def test_models_are_told_without_one() -> None:
    with pytest.raises(Told) as told:
        forms.check_path("models", PATHS, "m")
    assert [one["id"] for one in json.loads(told.value.body)["data"]] == ["m"]
    with pytest.raises(Told) as told:
        forms.check_path("models/m", PATHS, "m")
    assert json.loads(told.value.body)["object"] == "model"
    for path in ("models/other", "chat/completions"):
        with pytest.raises(BadRequest, match="this model has 'models', 'embeddings', 'rerank'") as wrong:
            forms.check_path(path, PATHS, "m")
        assert wrong.value.code == 404
    forms.check_path("embeddings", PATHS, "m")


def test_mistakes_are_told_as_the_path_s_clients_read_them() -> None:
    assert json.loads(forms.refusal({}, 503, "x")) == {"error": {"code": 503, "message": "x"}}
    error = json.loads(forms.refusal({"url_path": "embeddings"}, 503, "x"))["error"]
    assert error == {"message": "x", "type": "server_error", "param": None, "code": None}


# ---- OpenAI's embeddings ----------------------------------------------------------------------------------------------


def test_embeddings() -> None:
    request = parse({"input": ["a", "b"], "model": "any", "user": None}, "embeddings")
    assert request.inputs == ("a", "b")
    assert rendered(request, [[0.5, 1.0], [0.25, 2.0]]) == {
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [0.25, 2.0]},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_a_bare_text_is_a_list_of_one_and_numbers_may_be_packed() -> None:
    request = parse({"input": "a", "encoding_format": "base64", "dimensions": 2}, "embeddings")
    assert request.parameters == {"dimensions": 2}
    (one,) = rendered(request, [[0.5, -1.25]])["data"]
    assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == [0.5, -1.25]


def test_token_ids() -> None:
    assert parse({"input": [1, 2]}, "embeddings").inputs == ({"token_ids": [1, 2]},)
    assert parse({"input": [[1, 2], [3]]}, "embeddings").inputs == ({"token_ids": [1, 2]}, {"token_ids": [3]})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": "a"}, "unknown key 'inputs'"),
        ({"model": "m"}, "no 'input'"),
        ({"input": 5}, "'input' is a number; allowed: a text"),
        ({"input": []}, "empty list"),
        ({"input": ["a"] * 5}, "5 elements; at most 4"),
        ({"input": "a", "encoding_format": "int8"}, "'encoding_format' is a string; allowed: \"float\""),
        ({"input": "a", "dimensions": 0}, "'dimensions' is a number; allowed: a whole number from 1"),
        (["a"], "the JSON body is a list"),
    ],
)
def test_embeddings_that_are_refused(document: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse(document, "embeddings")


# ---- reranking --------------------------------------------------------------------------------------------------------

ANSWER = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.2}]


def test_rerank_documents() -> None:
    document = {"query": "q", "documents": ["x", {"text": "y"}], "top_n": 1, "return_documents": True, "model": "any"}
    request = parse(document, "rerank")
    assert request.inputs == ({"query": "q", "texts": ["x", "y"]},)
    answer = rendered(request, [ANSWER])
    assert answer["results"] == [{"index": 1, "relevance_score": 0.9, "document": {"text": "y"}}]
    assert answer["usage"]["total_tokens"] == 7 and answer["model"] == "m"
    plain = parse({"query": "q", "documents": ["x", "y"]}, "rerank")
    assert rendered(plain, [ANSWER])["results"] == [
        {"index": 1, "relevance_score": 0.9},
        {"index": 0, "relevance_score": 0.2},
    ]


def test_rerank_texts_is_hugging_face_s() -> None:
    request = parse({"query": "q", "texts": ["x"], "flag": True}, "rerank", fields=Query.fields)
    assert request.form is None and request.single and request.parameters == {"flag": True}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"documents": ["x"]}, "no 'query'"),
        ({"query": "q"}, "no 'documents'"),
        ({"query": "q", "documents": ["x", 5]}, r"documents\[1\] is a number"),
        ({"query": "q", "documents": ["x"], "rank_fields": ["a"]}, "unknown key 'rank_fields'"),
    ],
)
def test_reranking_that_is_refused(document: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse(document, "rerank")


# ---- KServe v1 --------------------------------------------------------------------------------------------------------


def test_v1() -> None:
    request = parse({"instances": ["a", {"b64": "aGk="}], "parameters": {"flag": True}})
    assert request.inputs == ("a", "aGk=") and request.parameters == {"flag": True}
    assert rendered(request, [1, {"x": 2}]) == {"predictions": [1, {"x": 2}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"instances": "a"}, "'instances' is a string; a list is expected"),
        ({"instances": ["a", 5]}, r"instances\[1\] is a number"),
        ({"instances": ["a"], "inputs": ["b"]}, "unknown key 'inputs'"),
        ({"instances": ["a"], "parameters": {"other": 1}}, "unknown parameter 'other'"),
    ],
)
def test_v1_that_is_refused(document: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as wrong:
        parse(document)
    assert wrong.value.render is not None
    assert set(json.loads(wrong.value.render(400, "x"))) == {"error"}


# ---- KServe v2 --------------------------------------------------------------------------------------------------------


def tensor(data: Any, shape: list[int], datatype: str = "BYTES", name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def test_v2_texts_and_vectors() -> None:
    document = {"id": "7", "inputs": [tensor(["a", "b"], [2, 1])], "parameters": {"binary_data_output": True}}
    request = parse(document)
    assert request.inputs == ("a", "b") and request.parameters == {}
    assert rendered(request, [[0.5, 1.0], [2.0, 3.0]]) == {
        "model_name": "m",
        "id": "7",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [0.5, 1.0, 2.0, 3.0]}],
    }


def test_v2_structured_answers_are_their_json() -> None:
    answers = [{"label": "größe"}, [0.5], []]
    (output,) = rendered(parse({"inputs": [tensor(["a", "b", "c"], [3])]}), answers)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [3])
    assert [json.loads(one) for one in output["data"]] == answers


def test_v2_several_tensors_are_one_object_an_input() -> None:
    document = {"inputs": [tensor(["q", "r"], [2], name="question"), tensor([["c"], ["d"]], [2, 1], name="context")]}
    assert parse(document, fields=("question", "context")).inputs == (
        {"question": "q", "context": "c"},
        {"question": "r", "context": "d"},
    )


def test_v2_objects_as_json_texts_where_inputs_are_objects() -> None:
    whole = {"question": "q", "context": "c"}
    document = {"inputs": [tensor([json.dumps(whole), "{no"], [2], name="input")]}
    assert parse(document, fields=("question", "context")).inputs == (whole, "{no")
    assert parse(document).inputs == (json.dumps(whole), "{no")


def test_v2_numbers() -> None:
    document = {"inputs": [tensor([[1, 2], [3, 4]], [2, 2], "INT64", name="items")]}
    assert parse(document).inputs == ([1, 2], [3, 4])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([tensor(["a"], [2])], "has 1 values; its shape"),
        ([tensor(["a"], [0])], "is no list of whole numbers from 1"),
        ([tensor(["a"], [True])], "is no list of whole numbers from 1"),
        ([tensor([1], [1])], "holds something that is no BYTES"),
        ([tensor([True], [1], "INT64")], "holds something that is no INT64"),
        ([tensor(["a"], [1], "STRING")], "datatype of the tensor 'text' is not known"),
        ([tensor("a", [1])], "has no list 'data'"),
        ([tensor(["a"], [1], other=1)], "unknown key 'other'"),
        ([tensor(["a"], [1], name=5)], "a tensor's 'name' is a number"),
        ([tensor(["a"], [1]), tensor(["a", "b"], [2], name="pair")], r"different lengths \[1, 2\]"),
    ],
)
def test_v2_that_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse({"inputs": inputs})


def test_v2_outputs_and_other_keys() -> None:
    inputs = [tensor(["a"], [1])]
    assert parse({"inputs": inputs, "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}).inputs == (
        "a",
    )
    for more, message in (
        ({"outputs": [{"name": "logits"}]}, "the one output there is: 'output'"),
        ({"id": 5}, "'id' is a number"),
        ({"parameters": 5}, "'parameters' is a number"),
        ({"other": 5}, "unknown key 'other'"),
    ):
        with pytest.raises(BadRequest, match=message):
            parse({"inputs": inputs, **more})


def test_hugging_face_s_lists_of_objects_are_no_tensors() -> None:
    request = parse({"inputs": [{"text": "a"}, {"text": "b"}]})
    assert request.form is None and request.inputs == ({"text": "a"}, {"text": "b"})
    assert not kserve.recognises({"inputs": []}) and not kserve.recognises([])


# ---- binary tensors ---------------------------------------------------------------------------------------------------


def element(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def read(head: Any, rest: bytes, size: int | str | None = None) -> Any:
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if size is None else size)}
    return forms.read({"body": text + rest}, headers, "…", 1000)


def binary(datatype: str, shape: list[int], size: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def test_binary_tensors_are_read_as_if_they_were_json() -> None:
    texts = element("größe".encode()) + element(b"\xff\xd8")
    numbers = np.array([1, -2], "<i8").tobytes()
    head = {"inputs": [binary("BYTES", [2], len(texts)), tensor(["c"], [1]), binary("INT64", [2], 16)]}
    found = read(head, texts + numbers)["inputs"]
    assert found[0]["data"] == ["größe", b"\xff\xd8"] and found[1]["data"] == ["c"] and found[2]["data"] == [1, -2]
    assert parse({"inputs": found[:1]}).inputs == ("größe", b"\xff\xd8")


@pytest.mark.parametrize(
    ("head", "rest", "message"),
    [
        ({"inputs": [binary("BYTES", [1], 9)]}, b"1234", "4 bytes are left"),
        ({"inputs": [binary("BYTES", [1], -1)]}, b"", "'binary_data_size' is a number"),
        ({"inputs": [binary("BYTES", [1], 4)]}, b"\xff\xff\xff\xff", "ends behind its 4 bytes"),
        ({"inputs": [binary("INT64", [1], 3)]}, b"123", "no whole number of values of the datatype INT64"),
        ({"inputs": [binary("BYTES", [1], 0)]}, b"x", "1 bytes behind the tensors belong to none"),
        ({"inputs": 5}, b"", "no list 'inputs'"),
        ([], b"", "no list 'inputs'"),
    ],
)
def test_binary_tensors_that_are_refused(head: Any, rest: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read(head, rest)


def test_a_wrong_head() -> None:
    for size, message in (("x", "a whole number is expected"), (3, "the first 3 bytes of the body are not valid JSON")):
        with pytest.raises(BadRequest, match=message):
            read({"inputs": []}, b"", size)
    with pytest.raises(BadRequest, match="at most 1000 are allowed") as large:
        read({"inputs": []}, bytes(1000))
    assert large.value.code == 413
