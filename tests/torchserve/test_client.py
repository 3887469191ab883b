"""Requests over REST and gRPC: tokens, answers, refusals in an answer's body, and what `predict` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_mar import echo_mar

from archiver.torchserve.client import (
    Answer,
    RequestError,
    UsageError,
    body_status,
    grpc_status,
    predict,
    predict_grpc,
    predict_rest,
)
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import free_ports

REFUSAL = b'{"error": {"code": 400, "message": "empty"}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    with TorchServe([echo_mar(tmp_path_factory.mktemp("store"))]) as running:
        running.wait_ready(120)
        yield running


def test_both_protocols_bring_the_bytes_back(server: TorchServe) -> None:
    token = server.inference_key
    body = "schöner Film ☺".encode()
    url = server.prediction_url("echo")
    assert predict_rest(url, body, "text/plain", token=token) == Answer(200, body)
    assert predict_grpc(server.grpc_target, "echo", body, token=token) == Answer(200, body)
    large = b"x" * 1_500_000
    assert predict_grpc(server.grpc_target, "echo", large, token=token) == Answer(200, large)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_missing_or_wrong_token_is_a_400_over_both(server: TorchServe, token: str | None) -> None:
    answers = [
        predict_rest(server.prediction_url("echo"), b"hi", "text/plain", token=token),
        predict_grpc(server.grpc_target, "echo", b"hi", token=token),
    ]
    for answer in answers:
        assert answer.status == 400
        assert not answer.ok
        assert "Token Authorization failed" in answer.text


def test_an_unknown_model_is_a_404_over_both(server: TorchServe) -> None:
    token = server.inference_key
    assert predict_rest(server.prediction_url("absent"), b"hi", "text/plain", token=token).status == 404
    assert predict_grpc(server.grpc_target, "absent", b"hi", token=token).status == 404


def test_a_refusal_in_an_answer_that_grpc_calls_ok_has_its_status(server: TorchServe) -> None:
    assert predict_grpc(server.grpc_target, "echo", REFUSAL, token=server.inference_key) == Answer(400, REFUSAL)
    assert body_status(b'{"error": {"code": 400}}') == 400
    assert body_status(b'[{"label": "error", "score": 1}]') == 200
    assert body_status(b'{"label": "error"}') == 200
    assert body_status(b"{not json") == 200
    assert grpc_status("UNAVAILABLE", "") is None
    assert grpc_status("INTERNAL", "Model echo has no worker to serve inference request") == 503


def test_predict_prints_one_line_per_input(
    server: TorchServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "body.txt").write_text("from a\nfile")
    inputs = ["a fine film", '{"inputs": ["a", "b"]}', f"@{tmp_path / 'body.txt'}"]
    for url, grpc in (
        (server.prediction_url("echo"), False),
        (f"http://{server.grpc_target}/predictions/echo", True),
        (f"grpc://{server.grpc_target}/echo", True),
    ):
        assert predict(url, inputs, grpc=grpc, key_file=server.key_file) == 0
        first, second, third = capsys.readouterr().out.splitlines()
        assert json.loads(first) == {"inputs": "a fine film"}
        assert json.loads(second) == {"inputs": ["a", "b"]}
        assert third == "from a file"


def test_predict_is_0_only_when_all_were_answered(server: TorchServe, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"grpc://{server.grpc_target}/echo"
    assert predict(target, ["good", REFUSAL.decode()], grpc=True, token=server.inference_key) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert "status 400" in shown.err
    assert predict(server.prediction_url("echo"), ["good"]) == 1
    assert "give --token or --key-file" in capsys.readouterr().err


def test_no_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    with pytest.raises(RequestError, match=rf"^http://127\.0\.0\.1:{port}/predictions/x: connection refused; is Torch"):
        predict_rest(f"http://127.0.0.1:{port}/predictions/x", b"hi")
    with pytest.raises(RequestError, match="UNAVAILABLE"):
        predict_grpc(f"127.0.0.1:{port}", "x", b"hi", timeout=5)
    assert predict(f"http://127.0.0.1:{port}/predictions/x", ["a", "b"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1


def test_what_cannot_be_sent_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"URL 'localhost:8080': expected http\(s\)://HOST:PORT/predictions/NAME"):
        predict("localhost:8080", ["a"])
    with pytest.raises(UsageError, match="a grpc:// URL needs --grpc"):
        predict("grpc://localhost:7070/sst2", ["a"])
    with pytest.raises(UsageError, match="nothing to send"):
        predict("http://localhost:8080/predictions/sst2", [])
    with pytest.raises(UsageError, match="absent: cannot be read"):
        predict("http://localhost:8080/predictions/sst2", [f"@{tmp_path}/absent"])
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(UsageError, match="no inference key in it"):
        predict("http://localhost:8080/predictions/sst2", ["a"], key_file=tmp_path / "keys.json")
    assert UsageError.exit_code == 2
