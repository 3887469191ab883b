"""Interactions: order of time, counts, names, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_items import COLUMNS, write_interactions

from archiver.data.interactions import is_number, read_interactions, read_names
from archiver.errors import DataError


def file(folder: Path, text: str, name: str = "seen.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_histories_are_in_the_order_of_time_and_equal_times_in_that_of_the_file(tmp_path):
    rows = "user,item,time\nb,9,2\na,3,5\na,1,4\nb,10,1\na,2,4\nb,9,2\n"
    found = read_interactions(file(tmp_path, rows))
    assert (found.users, found.histories) == (["b", "a"], [["10", "9", "9"], ["1", "2", "3"]])
    assert found.items == ["1", "2", "3", "9", "10"]


def test_dates_are_times_and_no_time_is_the_files_order(tmp_path):
    dated = "user,item,time\na,x,2024-05-02\na,y,2024-05-01T12:30:00\na,z,2024-05-01T12:30:00+02:00\n"
    assert read_interactions(file(tmp_path, dated)).histories == [["z", "y", "x"]]
    assert read_interactions(file(tmp_path, "user,item\na,x\na,y\n")).histories == [["x", "y"]]
    positions = {"user": 1, "item": 0}
    assert read_interactions(file(tmp_path, "x\ta\ny\ta\n", "seen.tsv"), positions).histories == [["x", "y"]]
    lines = '{"user": 1, "item": 7, "time": 2}\n{"user": 1, "item": 8, "time": 1}\n'
    assert read_interactions(file(tmp_path, lines, "seen.jsonl")).histories == [["8", "7"]]


def test_rare_users_and_items_go_until_all_that_stay_have_enough(tmp_path):
    """Without c, y has one interaction left; without y, b has one."""
    rows = "user,item\na,x\na,x\na,x\nb,x\nb,y\nc,y\n"
    assert read_interactions(file(tmp_path, rows), min_count=2).histories == [["x", "x", "x"]]
    assert read_interactions(file(tmp_path, rows)).users == ["a", "b"]
    with pytest.raises(DataError, match="seen.csv holds no user with 9 interactions or more"):
        read_interactions(file(tmp_path, rows), min_count=9)


def test_every_mistake_is_listed_with_its_line(tmp_path):
    rows = "user,item,time\na,x,1\n,x,2\na,,3\na,y,soon\na,y,nan\na,y\na,q,7\n"
    with pytest.raises(DataError, match="seen.csv has 6 mistakes") as error:
        read_interactions(file(tmp_path, rows), known=["x", "y"])
    assert error.value.problems == [
        "seen.csv:3: user is empty",
        "seen.csv:4: item is empty",
        "seen.csv:5: time 'soon' is neither a number nor a date such as 2024-05-01T12:30:00",
        "seen.csv:6: time 'nan' is neither a number nor a date such as 2024-05-01T12:30:00",
        "seen.csv:7: has 2 columns, the first row has 3",
        "seen.csv:8: item 'q' is none of the 2 that the model knows",
    ]
    with pytest.raises(DataError, match="no column is named 'item'|name columns of the header"):
        read_interactions(file(tmp_path, "who,what\na,x\n"))


def test_items_that_a_model_does_not_know_go_where_rare_ones_have_gone(tmp_path):
    rows = "user,item\na,x\na,x\na,q\n"
    assert read_interactions(file(tmp_path, rows), min_count=2, known=["x"]).histories == [["x", "x"]]


def test_names(tmp_path):
    assert read_names(file(tmp_path, "item,title\n1,One\n2,One\n")) == {"1": "One", "2": "One"}
    with pytest.raises(DataError, match="seen.csv has 2 mistakes") as error:
        read_names(file(tmp_path, "item,title\n1,One\n1,Two\n2,\n"))
    assert error.value.problems == ["seen.csv:3: item '1' has a name already", "seen.csv:4: name is empty"]


def test_ids_that_are_numbers():
    assert [item for item in ("0", "7", "120", "007", "-1", "1.5", "x", "", "٣", "9" * 16) if is_number(item)] == [
        "0",
        "7",
        "120",
    ]


def test_generated_data_is_the_same_each_time(tmp_path):
    one, two = (read_interactions(write_interactions(tmp_path / name), COLUMNS) for name in "ab")
    assert one == two and len(one.users) == 60 and len(one.items) == 30
