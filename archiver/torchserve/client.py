"""Requests to a TorchServe over REST and gRPC, as a user of the served archive would send them."""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from archiver.errors import ArchiverError

# TorchServe's own max_request_size and max_response_size are the bounds; gRPC's 4 MB would be a lower one.
_LARGEST_MESSAGE = 64 << 20


@dataclass(frozen=True)
class Answer:
    """status: the HTTP status; over gRPC the one that the same failure has over REST, 200 for a prediction."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


class RequestError(ArchiverError):
    """The request could not be sent, or nothing came back: no server there, no trust in it, no answer in time."""


class UsageError(ArchiverError):
    """What `predict` was asked for makes no sense."""

    exit_code = 2


def predict_rest(
    url: str,
    body: bytes,
    content_type: str | None = "application/json",
    *,
    token: str | None = None,
    cacert: Path | None = None,
    timeout: float = 120.0,
) -> Answer:
    """POST one request.

    url: http(s)://HOST:PORT/predictions/NAME; cacert: PEM file of the authority to trust; timeout in seconds
    raises RequestError when no answer comes, with the reason in one sentence
    """
    headers = {"Content-Type": content_type} if content_type else {}
    try:
        return _rest("POST", url, body, headers, token, cacert, timeout)
    except (OSError, http.client.HTTPException) as failed:
        raise RequestError(unanswered(url, failed)) from failed


def get_rest(url: str, *, token: str | None, cacert: Path | None = None, timeout: float = 10.0) -> Answer:
    """GET, for the management API. OSError and RequestError pass through."""
    try:
        return _rest("GET", url, None, {}, token, cacert, timeout)
    except http.client.HTTPException as failed:
        raise RequestError(unanswered(url, failed)) from failed


def predict_grpc(
    target: str,
    model: str,
    body: bytes,
    *,
    token: str | None = None,
    cacert: Path | None = None,
    secure: bool = False,
    timeout: float = 120.0,
) -> Answer:
    """One unary Predictions call, the body under the input name `data`.

    target: HOST:PORT; secure: TLS with the system's authorities (cacert, a PEM file, implies it); timeout in seconds
    raises RequestError when no answer comes
    """
    import grpc

    messages, services = interface()
    options = [
        ("grpc.max_send_message_length", _LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ]
    if cacert or secure:
        credentials = grpc.ssl_channel_credentials(_read(cacert) if cacert else None)
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target, options)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = messages.PredictionsRequest(model_name=model, input={"data": body})
    with channel:
        try:
            response = services.InferenceAPIsServiceStub(channel).Predictions(
                request, timeout=timeout, metadata=metadata
            )
        except grpc.RpcError as failed:
            status = grpc_status(failed.code().name, failed.details() or "")
            if status is None:
                raise RequestError(
                    f"{target}: {failed.code().name}: {failed.details()}; is TorchServe's gRPC port there?"
                ) from failed
            return Answer(
                status, json.dumps({"code": status, "type": failed.code().name, "message": failed.details()}).encode()
            )
    return Answer(body_status(response.prediction), response.prediction)


def grpc_status(code: str, details: str) -> int | None:
    """The HTTP status that TorchServe gives the same failure over REST; None when no server answered at all."""
    if code == "UNAVAILABLE" and "InternalServerException" in details:
        return 503  # TorchServe's own words on a request that a dead worker had
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return None
    if "Token Authorization failed" in details:
        return 400
    if details.startswith("Worker died"):
        return 507
    if details.startswith("Model not found"):
        return 404
    known = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 413}
    if code == "INTERNAL" and ("worker" in details.lower() or "queue" in details.lower()):
        return 503
    return known.get(code, 500)


def body_status(body: bytes) -> int:
    """The status of an answer that gRPC calls OK: a handler's refusal stands in its body as {"error": {"code": …}}."""
    if not body[:16].lstrip().startswith(b"{"):
        return 200
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return 200
    return code if isinstance(code, int) else 500


def predict(
    url: str,
    inputs: Sequence[str],
    *,
    grpc: bool = False,
    token: str | None = None,
    key_file: Path | None = None,
    cacert: Path | None = None,
    timeout: float = 120.0,
) -> int:
    """The CLI verb: one request per input, one line of answer each on stdout, reasons on stderr.

    url: http(s)://HOST:PORT/predictions/NAME; with grpc also grpc://HOST:PORT/NAME (PORT is the gRPC port)
    inputs: a text, a JSON object (begins with `{`, sent as it is), or @FILE whose bytes are the body
    returns 0 when every input was answered with 2xx, else 1
    raises UsageError for an URL, key file or input file that cannot be used
    """
    if not inputs:
        raise UsageError("nothing to send: give at least one INPUT")
    secure, target, model = _split(url, grpc)
    if key_file is not None:
        token = read_key(key_file, "inference")
    bodies = [_body(text) for text in inputs]
    failures = 0
    for body, content_type in bodies:
        try:
            if grpc:
                answer = predict_grpc(target, model, body, token=token, cacert=cacert, secure=secure, timeout=timeout)
            else:
                answer = predict_rest(url, body, content_type, token=token, cacert=cacert, timeout=timeout)
        except RequestError as failed:
            print(failed, file=sys.stderr)
            return 1
        line = " ".join(answer.text.split("\n")).strip()
        if answer.ok:
            print(line)
        else:
            failures += 1
            print(line)
            print(f"{url}: answered with status {answer.status}{token_hint(answer, token)}", file=sys.stderr)
    return 1 if failures else 0


def read_key(key_file: Path, which: str) -> str:
    """A token from TorchServe's key_file.json. which: "inference", "management" or "API".

    raises UsageError when the file cannot be read or does not hold that key
    """
    try:
        return str(json.loads(_read(key_file))[which]["key"])
    except (ValueError, KeyError, TypeError) as broken:
        raise UsageError(f"{key_file}: no {which} key in it; expected TorchServe's key_file.json") from broken


@functools.cache
def interface() -> tuple[ModuleType, ModuleType]:
    """Message classes and stubs of TorchServe's inference API, made from our own inference.proto when first asked for.

    `messages.PredictionsRequest`, `services.InferenceAPIsServiceStub`.
    """
    import grpc

    # grpc_tools looks for the .proto along sys.path; an installed package need not lie on it.
    root = str(Path(__file__).resolve().parent.parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    messages, services = grpc.protos_and_services("archiver/torchserve/inference.proto")
    return messages, services


def connect(url: str, cacert: Path | None, timeout: float) -> http.client.HTTPConnection:
    """A connection to the host of a URL, which opens when it is first used.

    cacert: PEM file of the authority to trust, for https; timeout in seconds
    """
    parts = urlsplit(url)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(cacert) if cacert else None)
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=context)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)


def unanswered(url: str, failed: Exception) -> str:
    """Why a request got no answer, in one sentence."""
    if isinstance(failed, ConnectionRefusedError):
        return f"{url}: connection refused; is TorchServe running there (`make serve`)?"
    if isinstance(failed, TimeoutError):
        return f"{url}: no answer in time; the server is overloaded or hangs"
    if isinstance(failed, ssl.SSLCertVerificationError):
        why = failed.verify_message
        return f"{url}: the server's certificate is not trusted ({why}); give its authority with --cacert"
    return f"{url}: no answer ({type(failed).__name__}: {failed})"


def token_hint(answer: Answer, token: str | None) -> str:
    """What to do about the token, where that was refused; else nothing."""
    if "Token Authorization failed" not in answer.text:
        return ""
    return (
        "; the token is wrong or has expired" if token else "; give --token or --key-file (TorchServe's key_file.json)"
    )


def _rest(
    method: str,
    url: str,
    body: bytes | None,
    headers: dict[str, str],
    token: str | None,
    cacert: Path | None,
    timeout: float,
) -> Answer:
    parts, connection = urlsplit(url), connect(url, cacert, timeout)
    if token:
        headers = {**headers, "Authorization": f"Bearer {token}"}
    try:
        connection.request(method, parts.path or "/", body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def _split(url: str, grpc: bool) -> tuple[bool, str, str]:
    parts = urlsplit(url)
    schemes = ("http", "https", "grpc", "grpcs") if grpc else ("http", "https")
    path = parts.path.strip("/").split("/")
    names_model = len(path) == 2 and path[0] == "predictions" or (parts.scheme.startswith("grpc") and len(path) == 1)
    if parts.scheme not in schemes or not parts.netloc or not names_model or not path[-1]:
        form = "http(s)://HOST:PORT/predictions/NAME" + (" or grpc://HOST:PORT/NAME" if grpc else "")
        also = "; a grpc:// URL needs --grpc" if parts.scheme.startswith("grpc") and not grpc else ""
        raise UsageError(f"URL {url!r}: expected {form}{also}")
    return parts.scheme in ("https", "grpcs"), parts.netloc, path[-1]


def _body(text: str) -> tuple[bytes, str | None]:
    if text.startswith("@"):
        return _read(Path(text[1:])), None
    if text.startswith("{"):
        return text.encode(), "application/json"
    return json.dumps({"inputs": text}, ensure_ascii=False).encode(), "application/json"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failed:
        raise UsageError(f"{path}: cannot be read ({failed.strerror}); name a file that exists") from failed
