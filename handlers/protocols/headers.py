"""A request's headers, whose names mean the same in upper and in lower case."""

from collections.abc import Mapping
from typing import Any


class Headers(dict[str, Any]):
    """What TorchServe's context holds of one request: its own headers, and of each field its content type.

    Args:
        types: {"content-type": …} by a field's name. own: the request's own headers; none where it came over gRPC.
    """

    __slots__ = ("own",)

    def __init__(self, types: Mapping[str, Any], own: Mapping[str, str]) -> None:
        super().__init__(types)
        self.update(own)
        self.own = _lower(own)  # once: a worker asks for half a dozen of them


def header_of(headers: Mapping[str, Any], name: str) -> str | None:
    """The value of a request's own header; of several whose names differ in case alone, the first.

    Args:
        headers: of one request, as TorchServe's context has them, or `Headers`. name: in lower case.
    """
    return (headers.own if isinstance(headers, Headers) else _lower(headers)).get(name)


def _lower(headers: Mapping[str, Any]) -> dict[str, str]:
    return {key.lower(): value for key, value in reversed([*headers.items()]) if isinstance(value, str)}
