"""recommendation: the items that are likeliest next after a history, each with its score, best first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool, is_positive_int
from handlers.inputs.items import Catalog, History, Items, checked_items
from handlers.tasks.items.ranking import best

TOP_K = 10
MOST_TOP_K = 1000  # of one answer
_STORED = 100  # items of a stored answer


class RecommendationHandler(BatchHandler[History]):
    """The session's output for a history is [items] float32: the score of each item that the model knows.

    All of them are ranked, exactly; equal scores in the order of the table. Those of the history are left out where
    `exclude_seen` says so; its default is true where nobody in the validation data has an item twice.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "top_k": Parameter(
            is_positive_int, f"a whole number from 1 to {MOST_TOP_K}, at most as many as there are items"
        ),
        "exclude_seen": Parameter(is_bool, "true or false"),
        "candidates": Parameter(lambda value: isinstance(value, list), "a list of items (ids or names) to choose from"),
    }
    input: Items

    @property
    def catalog(self) -> Catalog:
        """The items that the model knows."""
        return self.input.catalog

    def make_input(self, folder: Path) -> Items:
        return Items.open(folder, self.serving)

    def prepare(self, values: Sequence[History], parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        self._top_k(parameters)
        self._candidates(parameters)
        return super().prepare(values, parameters)

    def answers(self, found: Sequence[Found[History]], parameters: Mapping[str, Any]) -> list[Any]:
        top_k, candidates = self._top_k(parameters), self._candidates(parameters)
        exclude_seen = parameters.get("exclude_seen", self.serving["exclude_seen"])
        return [self._ranked(one, top_k, candidates, exclude_seen) for one in found]

    def _ranked(
        self, found: Found[History], top_k: int, candidates: np.ndarray | None, exclude_seen: bool
    ) -> list[dict[str, Any]]:
        scores, seen = found.outputs[0], set(found.items[0].seen) if exclude_seen else set()
        if candidates is None:
            chosen = best(scores, top_k, seen)
        else:
            left = np.array([row for row in candidates.tolist() if row not in seen], np.int64)
            chosen = left[best(scores[left], top_k)] if len(left) else left
        return [
            self.catalog.described(row) | {"score": round(float(scores[row]), 6)} for row in chosen.tolist()
        ]  # fmt: skip

    def _top_k(self, parameters: Mapping[str, Any]) -> int:
        most = min(MOST_TOP_K, len(self.catalog))
        top_k: int = parameters.get("top_k", min(TOP_K, most))
        if top_k > most:
            raise BadRequest(
                f"parameter 'top_k' is {top_k}; there are {len(self.catalog)} items, at most {most} are answered"
            )
        return top_k

    def _candidates(self, parameters: Mapping[str, Any]) -> np.ndarray | None:
        """The rows of the items to choose from, each once, rising; None for all."""
        given = parameters.get("candidates")
        if given is None:
            return None
        where = "parameters.candidates"
        rows = self.catalog.rows(checked_items(given, where), where)
        return np.unique(np.array(rows, np.int64))

    @property
    def full_parameters(self) -> dict[str, Any]:
        """Far more than is asked for, and less than all where there are very many."""
        return {"top_k": min(_STORED, len(self.catalog))}

    def compare(self, stored: Any, found: Any) -> float:
        """Scores by item; an item that one answer alone has counts by how far it is above the other's last one."""
        try:
            here, there = ({item["item"]: float(item["score"]) for item in answer} for answer in (stored, found))
        except (KeyError, TypeError, ValueError):
            return float("inf")
        if len(here) != len(there) or not here:
            return 0.0 if here == there else float("inf")
        both = here.keys() & there.keys()
        differences = [abs(here[item] - there[item]) for item in both]
        for ours, theirs in ((here, there), (there, here)):
            least = min(theirs.values())
            differences += [max(0.0, score - least) for item, score in ours.items() if item not in both]
        return max(differences) / (max(map(abs, here.values())) or 1.0)
