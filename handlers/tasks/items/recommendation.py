"""recommendation: the items that are likeliest next after a history, each with its score, best first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.base import BatchHandler, Found
from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool, is_positive_int
from handlers.inputs.items import Catalog, History, Items, Rows, checked_items
from handlers.tasks.items.ranking import best

TOP_K = 10
MOST_TOP_K = 1000  # of one answer
_STORED = 100  # items of a stored answer


@dataclass(frozen=True)
class Wanted(Rows):
    """A history, and what is asked of its scores.

    Args:
        top_k: how many items. left_out: rows that are not ranked. candidates: those that are, rising; None: all.
    """

    top_k: int
    left_out: frozenset[int]
    candidates: np.ndarray | None


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
        top_k, candidates = self._top_k(parameters), self._candidates(parameters)
        exclude_seen = parameters.get("exclude_seen", self.serving["exclude_seen"])
        return [
            (Wanted(item.recent, item.seen, top_k, frozenset(item.seen if exclude_seen else ()), candidates),)
            for item in self.input.encode(values, parameters)
        ]

    def keep(self, item: Wanted, output: np.ndarray) -> np.ndarray:
        """[2, ≤ top_k] float64: rows of the best items, the best first, and their scores; NaN where a score is no number.

        All scores of a million items take 4 MB a history: only one sub-batch's are held at a time.
        """
        try:
            if item.candidates is None:
                chosen = best(output, item.top_k, item.left_out)
            else:
                left = np.array([row for row in item.candidates.tolist() if row not in item.left_out], np.int64)
                chosen = left[best(output[left], item.top_k)] if len(left) else left
        except ArithmeticError:
            return np.full((2, 1), np.nan)
        return np.stack([chosen.astype(np.float64), output[chosen].astype(np.float64)])

    def answers(self, found: Sequence[Found[History]], parameters: Mapping[str, Any]) -> list[Any]:
        return [self._told(one.outputs[0]) for one in found]

    def _told(self, ranked: np.ndarray) -> list[dict[str, Any]]:
        if not np.isfinite(ranked).all():
            raise ArithmeticError("the model's answer is not finite")
        rows, scores = ranked
        return [
            self.catalog.described(int(row)) | {"score": round(float(score), 6)}
            for row, score in zip(rows, scores, strict=True)
        ]

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
