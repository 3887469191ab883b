"""Raw requests to the live server: headers as bytes, bodies as they are, one kept connection per client."""

from __future__ import annotations

import http.client
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc

from archiver.torchserve.client import body_status, get_rest, grpc_status
from archiver.torchserve.server import TorchServe

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BOUNDARY = "marpress-boundary"


@dataclass(frozen=True)
class Reply:
    """What came back. headers: their names in lower case."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of a handler's refusal."""
        return str(self.value["error"]["message"])


@dataclass
class Stream:
    """Server-sent events as they came, each with its seconds after the request; done: `[DONE]` was the last."""

    status: int
    content_type: str
    events: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    done: bool = False
    messages: int = 0

    def add(self, data: bytes, started: float) -> None:
        assert not self.done, "something came behind [DONE]"
        self.done = data == b"[DONE]"
        if not self.done:
            self.events.append(json.loads(data))
            self.times.append(time.perf_counter() - started)

    @property
    def text(self) -> str:
        """All pieces of text together."""
        parts = []
        for event in self.events:
            if "token" in event:
                parts.append(event["token"]["text"])
            for choice in event.get("choices", []):
                parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
        return "".join(parts)


class Rest:
    """One client with one connection, which is opened again when the server closed it."""

    def __init__(self, server: TorchServe) -> None:
        parts = urlsplit(server.inference_url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        self._token = server.inference_key

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def post(
        self,
        name: str,
        body: bytes | str | dict[str, Any],
        content_type: str | bytes | None = JSON,
        headers: dict[str, str | bytes] | None = None,
        token: str | None = "",
    ) -> Reply:
        """To /predictions/`name`, or to a path of its own that begins with /. token: "" sends the right one, None none."""
        raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        sent: dict[str, str | bytes] = dict(headers or {})
        if content_type is not None:
            sent["Content-Type"] = content_type
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self._token}"
        try:
            # Given a body and a dict, http.client adds no content type of its own.
            path = name if name.startswith("/") else f"/predictions/{name}"
            self._connection.request("POST", path, raw, sent)  # type: ignore[arg-type]
            answer = self._connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            return Reply(answer.status, answer.read(), found)
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens a new one
            raise

    def get(self, path: str) -> Reply:
        """Of a path that begins with /."""
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
        answer = self._connection.getresponse()
        return Reply(answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()})

    def stream(self, name: str, body: dict[str, Any], leave_after: int | None = None) -> Stream:
        """A body whose answer is server-sent events; leave_after: hang up behind so many events."""
        sent = {"Content-Type": JSON, "Authorization": f"Bearer {self._token}"}
        started = time.perf_counter()
        self._connection.request("POST", f"/predictions/{name}", json.dumps(body).encode(), sent)
        answer = self._connection.getresponse()
        found = Stream(answer.status, answer.headers.get("content-type", ""))
        while line := answer.readline():
            if line.startswith(b"data: "):
                found.add(line[6:].strip(), started)
                if leave_after is not None and len(found.events) >= leave_after:
                    self._connection.close()
                    break
        return found


class Grpc:
    """One client with one channel."""

    def __init__(self, server: TorchServe) -> None:
        self._messages, services = grpc.protos_and_services("archiver/torchserve/inference.proto")
        self._channel = grpc.insecure_channel(
            server.grpc_target, [("grpc.max_send_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub = services.InferenceAPIsServiceStub(self._channel)
        self._token = server.inference_key

    def __enter__(self) -> Grpc:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def predict(self, name: str, body: bytes | dict[str, Any], field: str = "data", token: str | None = "") -> Reply:
        """One unary call; the status is the one that REST has for the same outcome."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call(name, {field: raw}, token)

    def call(self, name: str, inputs: dict[str, bytes], token: str | None = "") -> Reply:
        metadata = [] if token is None else [("authorization", f"Bearer {token or self._token}")]
        request = self._messages.PredictionsRequest(model_name=name, input=inputs)
        try:
            answer = self._stub.Predictions(request, timeout=60, metadata=metadata).prediction
        except grpc.RpcError as failed:
            status = grpc_status(failed.code().name, failed.details() or "")
            return Reply(status or 0, (failed.details() or "").encode())
        return Reply(body_status(answer), answer)

    def stream(self, name: str, body: dict[str, Any], leave_after: int | None = None, **more: bytes) -> Stream:
        """StreamPredictions; more: further inputs, `stream=b"true"` for an answer in pieces."""
        inputs = {"data": json.dumps(body).encode(), **more}
        request = self._messages.PredictionsRequest(model_name=name, input=inputs)
        started = time.perf_counter()
        call = self._stub.StreamPredictions(request, timeout=60, metadata=[("authorization", f"Bearer {self._token}")])
        found = Stream(200, "")
        for message in call:
            found.messages += 1
            for part in message.prediction.split(b"\n\n"):
                if part:
                    found.add(part.removeprefix(b"data: "), started)
            if leave_after is not None and len(found.events) >= leave_after:
                call.cancel()
                break
        return found


def multipart(fields: dict[str, bytes], content_type: str | None = None) -> tuple[bytes, str]:
    """A multipart/form-data body of these fields, and its content type."""
    own = f"Content-Type: {content_type}\r\n" if content_type else ""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n{own}\r\n'.encode() + value + b"\r\n"
        for name, value in fields.items()
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def metrics(server: TorchServe, model: str) -> dict[str, float]:
    """The marpress_* samples of one model, by name, histogram parts included (`name_sum`, `name_count`).

    Workers hand them over once a second: those of requests before this call are there.
    """
    time.sleep(1.5)
    text = get_rest(f"{server.properties['metrics_address']}/metrics", token=server.management_key).text
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"(marpress_\w+)\{(.*)\} (\S+)$", line)
        if match and f'ModelName="{model}"' in match[2] and "le=" not in match[2]:
            found[match[1]] = found.get(match[1], 0.0) + float(match[3])
    return found
