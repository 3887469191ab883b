"""TorchServe's messages: read as its own worker reads them, written as its own worker writes them."""

from __future__ import annotations

import socket
import struct

import pytest
from torchserve_side import Response, request_message, responses

from handlers.torchserve.frames import Answers, Incoming, Incomplete, loaded_message, lost_message, read_message

BODY = b'{"inputs": "gr\xc3\xb6\xc3\x9fe"}'
REQUESTS = [
    ("a-1", {"Host": "x", "content-type": "application/json"}, [("body", "application/json", BODY)]),
    ("b-2", {}, [("data", "", b"\xff\x00"), ("stream", "text/plain", b"true")]),
    ("c-3", {"empty": ""}, []),
]


def test_requests_are_read_as_torchserve_reads_them() -> None:
    from ts.protocol.otf_message_handler import retrieve_msg
    from ts.service import Service

    message = request_message(REQUESTS)
    found, end = read_message(bytearray(b"xx" + message + b"rest"), 2, len(message) + 6)
    assert end == len(message) + 2
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(message)
        _, expected = retrieve_msg(ours)
    headers, _, ids = Service.retrieve_data_for_inference(expected)
    assert [one.id for one in found] == list(ids.values()) == ["a-1", "b-2", "c-3"]
    assert [dict(one.headers) for one in found] == [one._request_header for one in headers]
    assert [dict(one.row) for one in found] == [{"body": BODY}, {"data": b"\xff\x00", "stream": b"true"}, {}]
    assert [one.rest for one in found] == [True, False, True] and [one.bytes for one in found] == [len(BODY), 6, 0]


def test_of_a_form_s_list_all_values_are_kept() -> None:
    fields = [("kinds[]", "", b"word"), ("name", "", b"a"), ("name", "", b"b"), ("kinds[]", "", b"segment")]
    (found,), _ = read_message(bytearray(request_message([("a-1", {"Host": "x"}, fields)])), 0, 1000)
    assert found.row == {"kinds[]": b"word,segment", "name": b"b"}


def test_of_a_message_that_is_not_whole_it_says_how_much_there_must_be() -> None:
    message = request_message(REQUESTS)
    needed = [0]
    for end in range(len(message)):
        with pytest.raises(Incomplete) as incomplete:
            read_message(memoryview(message), 0, end)
        assert end < incomplete.value.needed <= len(message) and incomplete.value.needed >= needed[-1]
        needed.append(incomplete.value.needed)
    assert len(read_message(memoryview(message), 0, len(message))[0]) == 3


@pytest.mark.parametrize(
    ("message", "what"),
    [(b"L1234", "a message of the unknown kind 0x4c"), (b"I" + struct.pack("!i", -7), "a length of -7")],
)
def test_what_is_no_request(message: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_message(memoryview(message), 0, len(message))


def test_answers_are_written_as_torchserve_writes_them() -> None:
    answers = Answers()
    answers.add("a", True, b"[1]", "application/json")
    answers.add("b", True, b"{}", "application/json", 400)
    answers.add("c", False, b"{}", "application/json", 400)
    end = {"ts_stream_next": "false"}
    assert responses(answers.message()) == [
        Response("a", 200, "", "application/json", {"ts_stream_next": "true"}, b"[1]"),
        Response("a", 200, "", "application/json", end, b""),
        Response("b", 400, "Bad Request", "application/json", {}, b"{}"),
        Response("b", 200, "", "application/json", end, b""),
        Response("c", 200, "", "application/json", end, b"{}"),
    ]
    assert answers.ids == ["a", "b", "c"]


def test_messages_without_answers() -> None:
    from ts.protocol.otf_message_handler import create_load_model_response

    assert loaded_message() == create_load_model_response(200, "loads")
    assert lost_message("gone") == create_load_model_response(503, "gone")


def test_an_incoming_request_of_grpc_has_no_headers_of_its_own() -> None:
    assert not Incoming("a", {"data": b""}, {"data": {"content-type": ""}}).rest
