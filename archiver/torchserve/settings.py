"""The config.properties a server is started with: a base file, and what this one server must have otherwise."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

# What a server gets where no base file is given: nothing reachable from outside, nothing loadable from elsewhere.
SAFE: dict[str, str] = {
    "enable_model_api": "false",
    "allowed_urls": "file://.*",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",
    "disable_system_metrics": "true",
    "job_queue_size": "1000",
    "token_expiration_min": "1440",
}
# TorchServe runs in a folder of its own, so relative paths of the base file must be anchored where that file lies.
_PATHS = ("metrics_config", "private_key_file", "certificate_file", "keystore", "plugins_path", "model_store")
_TLS = ("keystore", "keystore_pass", "keystore_type", "private_key_file", "certificate_file", "enable_grpc_ssl")
_DEFAULT_ADDRESS = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
}
_DEFAULT_GRPC = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}


def read_properties(path: Path) -> dict[str, str]:
    """A Java properties file of the kind that TorchServe's own launcher reads: `key=value` lines, `#` comments."""
    properties = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", "!")):
            properties[key.strip()] = value.strip()
    folder = path.resolve().parent
    for key in _PATHS:
        if key in properties and (folder / properties[key]).exists():
            properties[key] = str(folder / properties[key])
    return properties


def write_properties(properties: Mapping[str, str], path: Path) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in sorted(properties.items())), encoding="utf-8")


def private_properties(base: Mapping[str, str]) -> dict[str, str]:
    """`base` for a short-lived server beside others: free loopback ports, plain HTTP, a key that does not expire."""
    ports = free_ports(5)
    properties = {key: value for key, value in base.items() if key not in _TLS}
    for key, port in zip(_DEFAULT_ADDRESS, ports, strict=False):
        properties[key] = f"http://127.0.0.1:{port}"
    properties.update(
        grpc_inference_port=str(ports[3]),
        grpc_management_port=str(ports[4]),
        grpc_inference_address="127.0.0.1",
        grpc_management_address="127.0.0.1",
        enable_envvars_config="false",
        # Without this a Python process is started every minute to read the host's counters, in the middle of a timing.
        disable_system_metrics="true",
        token_expiration_min="100000",
    )
    return properties


def fixed_properties(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with TorchServe's defaults written out for every address that it leaves open, loopback for gRPC."""
    loopback = {"grpc_inference_address": "127.0.0.1", "grpc_management_address": "127.0.0.1"}
    return {**_DEFAULT_ADDRESS, **_DEFAULT_GRPC, **loopback, **base}


def addresses(properties: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Each listener's key and (host, port), of properties that name them all."""
    found = {}
    for key in _DEFAULT_ADDRESS:
        host, _, port = properties[key].rpartition(":")
        found[key] = (host.partition("://")[2].strip("[]"), int(port.strip("/")))
    for key in _DEFAULT_GRPC:
        found[key] = (properties[key.replace("_port", "_address")], int(properties[key]))
    return found


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody listens on now. All are held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def taken(properties: Mapping[str, str]) -> list[str]:
    """The listeners whose port another process holds, as `inference_address 127.0.0.1:8080`."""
    busy = []
    for key, (host, port) in addresses(properties).items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                busy.append(f"{key} {host}:{port}")
    return busy
