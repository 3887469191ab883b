"""What a runtime declares: where and how it serves, what it needs on a host, how a workload is exported to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.requirements import requirement
from archiver.tasks.base import load_object

if TYPE_CHECKING:
    from archiver.tasks.workload import Workload


@dataclass(frozen=True)
class Export:
    """What an export leaves beside its files.

    Args:
        session: the runtime's settings for serving.json's `session`: all that the serving side's class needs. `int8` says
            whether products are computed in 8 bits; `weights` names packed weights where there are some.
        batching: how sub-batches are cut, where this runtime wants it otherwise; see handlers.batching.plan.
        measured: more for the report's timings.
    """

    session: dict[str, Any]
    batching: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """How a runtime serves one execution (see archiver.tasks.base).

    Args:
        session: "module:class" of the serving side.
        export: "module:function" of (workload, folder) → Export; UnsupportedModelError where it cannot take the model.
        packages: what it needs on the host, by the versions installed here. requirements: lines as they stand.
        carries_module: it computes with the task's torch module, whose code then lies in the archive.
        built_with: packages whose version can change what is exported.
        score: for GENERATE, "module:function" of (handler, folder) → a context in which windows → Predictions, by the
            engine that serves.
        adapters: whether it serves texts with LoRA adapters of their own.
    """

    session: str
    export: str
    packages: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    built_with: tuple[str, ...] = ()
    carries_module: bool = False
    score: str = ""
    adapters: bool = False

    def load_export(self) -> Callable[[Workload, Path], Export]:
        """Import and return the export function."""
        found: Callable[[Workload, Path], Export] = load_object(self.export)
        return found

    def required(self) -> list[str]:
        """Lines of requirements.txt."""
        return [*(requirement(package) for package in self.packages), *self.requirements]


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Args:
        name: as recipes write it.
        devices: what it computes on.
        ways: execution → Way; an execution that is missing cannot be served with it.
        automatic: whether `runtime: auto` tries it.
        fallback: it computes the original's own fp32 products, so that it wins only where nothing else runs or passes.
        needs: packages that must be installed here to build for it, with what to do about it where one is missing.
    """

    name: str
    devices: tuple[str, ...]
    ways: Mapping[str, Way]
    automatic: bool = True
    fallback: bool = False
    needs: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """What to do about each package that is not installed here."""
        return [advice for package, advice in self.needs.items() if importlib.util.find_spec(package) is None]
