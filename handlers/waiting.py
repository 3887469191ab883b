"""Requests that wait in a worker, and which of their items run next.

What has come while the engine was busy is cut into sub-batches of like length (handlers.batching). The one runs first whose
items have waited longest together for what it costs, divided by their length where that is large: short texts do not wait
behind long ones, which take so much of a stream's time at once. Who has waited for STARVED seconds comes next. After
"highest response ratio next" (Brinch Hansen, 1971), which runs one job at a time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handlers.batching import SubBatch, plan
from handlers.protocols.request import Request
from handlers.tracing import Trace

WINDOW = 128  # items that are planned together: planning costs their number times the rows of a sub-batch
SHARE = 32  # of them from one request, as long as others wait
FRESH = 0.002  # seconds that an item counts as having waited when it comes: many new ones are worth a run
STARVED = 1.6


@dataclass(eq=False)
class Waiting:
    """One request that was read.

    Args:
        caller: what its owner knows it by. request: what it asks. prepared: the items of each input.
        bytes: of its body. deadline: time.monotonic() from which nobody waits for it.
        trace: None where nothing is traced.

    began: when its first items were run.
    """

    caller: Any
    request: Request
    prepared: Sequence[Sequence[Any]]
    bytes: int = 0
    deadline: float = float("inf")
    arrived: float = field(default_factory=time.monotonic)
    trace: Trace | None = None
    began: float = 0.0

    def __post_init__(self) -> None:
        self.items = [item for items in self.prepared for item in items]
        self.outputs: list[np.ndarray | None] = [None] * len(self.items)
        self.open = list(range(len(self.items)))  # items that no sub-batch has taken yet
        self.left = len(self.items)  # items without an output


Member = tuple[Waiting, int]  # a request and which of its items


class Queue:
    """The requests of one worker.

    Args:
        size: of an item, in what `batching` counts. batching: what `plan` takes beside the sizes.
    """

    def __init__(self, size: Callable[[Any], int], batching: Mapping[str, Any]) -> None:
        self._size = size
        self._batching = batching
        self._requests: dict[Waiting, None] = {}  # in the order in which they came
        self._plan: list[tuple[SubBatch, list[Member]]] | None = None
        self._relieved = False  # whether the last one taken was for a starved request
        self.bytes = 0
        self.open = 0  # items that no sub-batch has taken yet

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: Waiting) -> bool:
        return request in self._requests

    def add(self, request: Waiting) -> None:
        """One more; it has at least one item."""
        self._requests[request] = None
        self.bytes += request.bytes
        self.open += len(request.open)
        self._plan = None

    def remove(self, request: Waiting) -> None:
        """One that is answered, whether all its items have run or not."""
        del self._requests[request]
        self.bytes -= request.bytes
        self.open -= len(request.open)
        if request.open:
            self._plan = None

    def late(self, now: float) -> list[Waiting]:
        """Requests for which nobody waits any more, and of which something is still to begin. now: time.monotonic()."""
        return [request for request in self._requests if request.deadline <= now and request.open]

    def take(self, now: float) -> tuple[SubBatch, list[Member]] | None:
        """The sub-batch to run next, its items taken out; None where no item waits.

        Args:
            now: time.monotonic().
        """
        if not self._plan:
            self._plan = self._planned()
        if not self._plan:
            return None
        chosen = self._starved(now) or max(self._plan, key=lambda part: self._worth(part, now))
        self._plan.remove(chosen)
        for request, item in chosen[1]:
            request.open.remove(item)
        self.open -= len(chosen[1])
        return chosen

    def _worth(self, part: tuple[SubBatch, list[Member]], now: float) -> float:
        batch, members = part
        waits = sum(FRESH + now - request.arrived for request, _ in members)
        start = float(self._batching.get("run_cost", 0))
        # What is shorter than a run's start costs is all alike: of ordinary texts none stands back.
        return waits / (batch.computed_tokens + start) / max(batch.length, start)

    def _starved(self, now: float) -> tuple[SubBatch, list[Member]] | None:
        """The part of one that has waited too long, unless the last part was such a one's."""
        oldest = min(self._plan or (), key=_arrival, default=None)
        self._relieved = oldest is not None and not self._relieved and now - _arrival(oldest) > STARVED
        return oldest if self._relieved else None

    def _planned(self) -> list[tuple[SubBatch, list[Member]]]:
        window: list[Member] = []
        for share in (SHARE, WINDOW):
            for request in self._requests:
                had = SHARE if share == WINDOW else 0
                window += [(request, item) for item in request.open[had:share]]
                if len(window) >= WINDOW:
                    break
        del window[WINDOW:]
        batches = plan([self._size(request.items[item]) for request, item in window], **self._batching)
        return [(batch, [window[place] for place in batch.members]) for batch in batches]


def _arrival(part: tuple[SubBatch, list[Member]]) -> float:
    return min(request.arrived for request, _ in part[1])
