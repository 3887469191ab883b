"""Histories of items: ids and names, what is refused and with which words, and what the model gets."""

from __future__ import annotations

import pytest

from handlers.errors import BadRequest, UnsoundArchive
from handlers.inputs.items import CATALOG, MOST_ITEMS, Catalog, History, Items

NUMBERS = Catalog([7, 8, 300, 9], ["Alien", "Brazil", "Twice", "Twice"])
WORDS = Catalog(["a", "b-1"])


def rows(value: object, parameters: dict[str, object] | None = None, catalog: Catalog = NUMBERS) -> list[int]:
    items = Items(catalog, 3)
    return list(items.encode([items.decode(value, "inputs")], parameters or {})[0].recent)


def test_ids_come_before_names_and_numbers_are_their_spelling():
    assert rows({"history": [7, "8", "Alien"]}) == [0, 1, 0]
    assert rows({"history": ["b-1", "a"]}, catalog=WORDS) == [1, 0]
    assert Catalog([1, 2], ["2", "1"]).find("2") == 1


def test_the_last_items_of_a_long_history_are_kept_and_all_are_seen():
    items = Items(NUMBERS, 3)
    (found,) = items.encode([History((7, 8, 300, 9, 7))], {})
    assert (found.recent, found.seen) == ((2, 3, 0), (0, 1, 2, 3, 0))
    assert items.size(found) == 3


REFUSED = {
    "inputs is a list": ([7], "inputs is a list; an object with 'history' is expected"),
    "a text": ("Alien", "inputs is a string; an object with 'history'"),
    "bytes": (b"Alien", "inputs is bytes; an object"),
    "no history": ({}, "inputs has no 'history'"),
    "another key": ({"history": [7], "items": []}, "unknown key 'items'; allowed: 'history'"),
    "no list": ({"history": 7}, "inputs.history is a number; a list of items"),
    "empty": ({"history": []}, "inputs.history is empty; at least one item"),
    "null": ({"history": [7, None]}, r"inputs.history\[1\] is null; an item's id or name"),
    "boolean": ({"history": [True]}, r"inputs.history\[0\] is a boolean"),
    "fraction": ({"history": [7.0]}, r"inputs.history\[0\] is a number; an item's id or name"),
    "nested": ({"history": [[7]]}, r"inputs.history\[0\] is a list"),
    "too many": ({"history": [7] * (MOST_ITEMS + 1)}, "has 10001 items; at most 10000"),
    "unknown": ({"history": [7, "Ailen"]}, r'history\[1\] is "Ailen", which is an id or a name of none of the 4 items'),
    "a number's fault": ({"history": [-7]}, r"history\[0\] is -7, which is"),
    "two of a name": ({"history": ["Twice"]}, r"\"Twice\" is the name of 2 items; send the id of one: '300', '9'"),
    "long": ({"history": ["x" * 500]}, 'is "x{59}…, which'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_itself(case):
    value, said = REFUSED[case]
    with pytest.raises(BadRequest, match=said):
        rows(value)


def test_unknown_items_are_skipped_where_that_is_asked_for():
    skipping = {"skip_unknown": True}
    assert rows({"history": ["?", 8, "!"]}, skipping) == [1]
    with pytest.raises(BadRequest, match="inputs.history has no item that the model knows"):
        rows({"history": ["?"]}, skipping)
    with pytest.raises(BadRequest, match="which is an id of none of the 2 items"):
        rows({"history": ["?"]}, catalog=WORDS)


def test_arrays_have_a_real_item_in_every_row():
    items = Items(NUMBERS, 3)
    found = items.encode([History((8,)), History((9, 300))], {})
    arrays = items.collate(found, 3, 4)
    assert arrays["item_ids"].tolist() == [[1, 0, 0], [3, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert arrays["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert items.from_stored(items.to_stored(History((9, "a")))) == History((9, "a"))


def test_a_catalog_comes_back_and_a_broken_one_is_unsound(tmp_path):
    (tmp_path / CATALOG).write_text(NUMBERS.to_json(), encoding="utf-8")
    found = Catalog.read(tmp_path)
    assert (found.ids, found.names) == (NUMBERS.ids, NUMBERS.names)
    assert found.described(2) == {"item": 300, "name": "Twice"} and WORDS.described(0) == {"item": "a"}
    for text in ("[", "[]", "{}", '{"ids": [1, 1]}', '{"ids": [1], "names": []}'):
        (tmp_path / CATALOG).write_text(text)
        with pytest.raises(UnsoundArchive, match="items.json cannot be read as a list of items"):
            Catalog.read(tmp_path)
