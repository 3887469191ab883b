"""Histories of items (films seen, goods bought): what a request calls them, and the rows of the model's table they are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.errors import BadRequest, UnsoundArchive
from handlers.inputs.base import Input
from handlers.inputs.checks import Parameter, is_bool, kind_of, quoted

CATALOG = "items.json"
MOST_ITEMS = 10_000  # of one history, or of candidates
_SHOWN = 60  # characters of an item that a message shows

ItemId = int | str


class Catalog:
    """The items that a model knows, row by row of its table.

    Args:
        ids: [rows], each once: all whole numbers, or all strings. names: [rows] or None; several items may share a name.
    """

    def __init__(self, ids: Sequence[ItemId], names: Sequence[str] | None = None) -> None:
        self.ids = list(ids)
        self.names = None if names is None else list(names)
        self._rows = {str(item): row for row, item in enumerate(self.ids)}
        self._named: dict[str, list[int]] = {}
        for row, name in enumerate(self.names or ()):
            self._named.setdefault(name, []).append(row)
        if len(self._rows) != len(self.ids) or (self.names is not None and len(self.names) != len(self.ids)):
            raise ValueError("an item's id stands twice, or there are not as many names as ids")

    @classmethod
    def read(cls, folder: Path) -> "Catalog":
        """The catalog of a model directory or an extracted archive.

        Raises: UnsoundArchive where items.json is missing or malformed.
        """
        try:
            document = json.loads((folder / CATALOG).read_text(encoding="utf-8"))
            return cls(document["ids"], document.get("names"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnsoundArchive(f"{CATALOG} cannot be read as a list of items: {error!r}") from error

    def to_json(self) -> str:
        """What `read` reads."""
        document = {"ids": self.ids} | ({} if self.names is None else {"names": self.names})
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, item: ItemId) -> int | None:
        """The row of an item by its id (255 and "255" are the same) or, failing that, its name; None where there is none.

        Raises: BadRequest for a name that several items have.
        """
        row = self._rows.get(str(item))
        if row is not None:
            return row
        rows = self._named.get(item, []) if isinstance(item, str) else []
        if len(rows) > 1:
            shown = quoted([str(self.ids[one]) for one in rows])
            raise BadRequest(f"{_shown(item)} is the name of {len(rows)} items; send the id of one: {shown}")
        return rows[0] if rows else None

    def rows(self, items: Sequence[ItemId], where: str, *, skip_unknown: bool = False) -> list[int]:
        """The rows of several items, in their order.

        Args:
            items: ids or names. where: their place in the request, for messages.
            skip_unknown: leave unknown ones out.
        Raises: BadRequest naming the first unknown or ambiguous one.
        """
        found: list[int] = []
        for index, item in enumerate(items):
            try:
                row = self.find(item)
            except BadRequest as error:
                raise BadRequest(f"{where}[{index}]: {error}") from error
            if row is not None:
                found.append(row)
            elif not skip_unknown:
                kinds = "an id" if self.names is None else "an id or a name"
                raise BadRequest(
                    f"{where}[{index}] is {_shown(item)}, which is {kinds} of none of the {len(self)} items that the model "
                    "knows"
                )
        return found

    def described(self, row: int) -> dict[str, Any]:
        """{"item": its id} and its name, where it has one."""
        found: dict[str, Any] = {"item": self.ids[row]}
        return found if self.names is None else found | {"name": self.names[row]}


def checked_items(value: Any, where: str) -> tuple[ItemId, ...]:
    """A list of items' ids or names; BadRequest says what is wrong with it."""
    if not isinstance(value, list):
        raise BadRequest(f"{where} is {kind_of(value)}; a list of items (ids or names) is expected")
    if not value:
        raise BadRequest(f"{where} is empty; at least one item is expected")
    if len(value) > MOST_ITEMS:
        raise BadRequest(f"{where} has {len(value)} items; at most {MOST_ITEMS} are allowed")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            raise BadRequest(f"{where}[{index}] is {kind_of(item)}; an item's id or name is expected")
    return tuple(value)


@dataclass(frozen=True)
class History:
    """What someone has had, oldest first, by ids or names. where: its place in the request."""

    items: tuple[ItemId, ...]
    where: str = field(default="history", compare=False)


@dataclass(frozen=True)
class Rows:
    """A history as rows of the table. recent: the last ones, that the model looks at. seen: all of them."""

    recent: tuple[int, ...]
    seen: tuple[int, ...]


class Items(Input[History, Rows]):
    """Histories as a kind of input; its size is the number of items that the model looks at.

    Args:
        catalog: the items. max_length: of a longer history the last items are looked at.
    """

    allowed: ClassVar[str] = (
        'allowed: {"history": [item, …]} with ids or names of items, oldest first; {"inputs": {"history": […]}}, or a '
        "list of such under inputs"
    )
    fields: ClassVar[tuple[str, ...]] = ("history",)
    parameters: ClassVar[dict[str, Parameter]] = {"skip_unknown": Parameter(is_bool, "true or false")}

    def __init__(self, catalog: Catalog, max_length: int) -> None:
        self.catalog, self.max_length = catalog, max_length

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> "Items":
        """The items of an extracted archive, or of a model directory; max_length as serving.json has it."""
        return cls(Catalog.read(folder), serving["max_length"])

    def decode(self, value: Any, where: str) -> History:
        if not isinstance(value, dict):
            raise BadRequest(f"{where} is {kind_of(value)}; an object with 'history' is expected; {self.allowed}")
        unknown = sorted(set(value) - set(self.fields))
        if unknown:
            raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: 'history'")
        if "history" not in value:
            raise BadRequest(f"{where} has no 'history'")
        place = f"{where}.history"
        return History(checked_items(value["history"], place), place)

    def encode(self, values: Sequence[History], parameters: Mapping[str, Any]) -> list[Rows]:
        found = []
        for value in values:
            rows = self.catalog.rows(value.items, value.where, skip_unknown=parameters.get("skip_unknown", False))
            if not rows:
                raise BadRequest(f"{value.where} has no item that the model knows; at least one is needed")
            found.append(Rows(tuple(rows[-self.max_length :]), tuple(rows)))
        return found

    def size(self, item: Rows) -> int:
        return len(item.recent)

    def collate(self, items: Sequence[Rows], size: int, rows: int) -> dict[str, np.ndarray]:
        return pad_rows([item.recent for item in items], size, rows)

    def to_stored(self, value: History) -> Any:
        return list(value.items)

    def from_stored(self, stored: Any) -> History:
        return History(tuple(stored))


def pad_rows(histories: Sequence[Sequence[int]], length: int, rows: int | None = None) -> dict[str, np.ndarray]:
    """Histories as arrays.

    Args:
        histories: [n] of at most `length` rows of the table each. rows: at least n, the default; a row beyond n has one
            real item.
    Returns: item_ids, attention_mask (1 = real), each [rows, length] int64.
    """
    shape = (rows or len(histories), length)
    item_ids, attention_mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    attention_mask[len(histories) :, 0] = 1
    for row, history in enumerate(histories):
        item_ids[row, : len(history)] = history
        attention_mask[row, : len(history)] = 1
    return {"item_ids": item_ids, "attention_mask": attention_mask}


def _shown(item: ItemId) -> str:
    text = json.dumps(item, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
