"""Which of the waiting items run next: like sizes together, long ones behind short ones but not for ever."""

from __future__ import annotations

from handlers.protocols.request import Request
from handlers.waiting import SHARE, WINDOW, Queue, Waiting

BATCHING = {"token_budget": 64, "max_rows": 8, "run_cost": 4}


def request(name: str, *sizes: int, arrived: float = 0.0, bytes: int = 1, deadline: float = float("inf")) -> Waiting:
    return Waiting(name, Request((), False, {}), [list(sizes)], bytes, deadline, arrived)


def queue(*requests: Waiting) -> Queue:
    made = Queue(lambda item: item, BATCHING)
    for one in requests:
        made.add(one)
    return made


def taken(of: Queue, now: float) -> list[tuple[str, int]]:
    found = of.take(now)
    return [(one.caller, item) for one, item in found[1]] if found else []


def test_like_sizes_run_together_the_cheap_ones_first() -> None:
    mine = queue(request("long", 60), request("a", 4), request("b", 5), request("c", 4))
    batch, members = mine.take(1.0) or (None, [])
    assert batch is not None and (batch.length, batch.rows) == (5, 3)
    assert {one.caller for one, _ in members} == {"a", "b", "c"}
    assert taken(mine, 1.0) == [("long", 0)] and mine.take(1.0) is None and len(mine) == 4


def test_what_waits_long_enough_for_its_cost_comes_first() -> None:
    # A second for 60 + 4 tokens of length 60 is worth 1.002 / 64 / 60 = 0.00026; 5 ms for 4 + 4 of length 4 are
    # 0.007 / 8 / 4 = 0.00022, two tenths 0.0063.
    mine = queue(request("long", 60, arrived=0.0), request("short", 4, arrived=0.995))
    assert taken(mine, 1.0) == [("long", 0)]
    mine = queue(request("long", 60, arrived=0.0), request("short", 4, arrived=0.8))
    assert taken(mine, 1.0) == [("short", 0)]
    # Several are worth what they have waited together: five of 0.05 s are 5 × 0.052 / 24 / 4 = 0.0027, the long one of
    # 0.6 s 0.602 / 64 / 60 = 0.00016.
    mine = queue(request("long", 60, arrived=0.4), *[request(str(number), 4, arrived=0.95) for number in range(5)])
    assert len(taken(mine, 1.0)) == 5


def test_who_starves_comes_next_and_then_another() -> None:
    shorts = [request(f"short {number}", 4, arrived=4.0) for number in range(16)]
    mine = queue(request("long", 60, arrived=3.3), request("longer", 64, arrived=3.2), *shorts)
    # 8 × 1.002 / 36 / 4 = 0.056 against 1.802 / 68 / 64 = 0.0004
    assert taken(mine, 5.0) == [("longer", 0)]
    assert len(taken(mine, 5.0)) == 8
    assert taken(mine, 5.0) == [("long", 0)]
    assert len(taken(mine, 5.0)) == 8


def test_new_ones_join_those_that_wait() -> None:
    mine = queue(request("a", 4), request("far", 60))
    assert taken(mine, 1.0) == [("a", 0)]
    mine.add(request("b", 60, arrived=0.5))
    mine.add(request("c", 4, arrived=0.5))
    assert taken(mine, 1.0) == [("c", 0)]
    assert sorted(taken(mine, 1.0) + taken(mine, 1.0)) == [("b", 0), ("far", 0)]


def test_one_request_does_not_fill_the_window_while_others_wait() -> None:
    mine = queue(request("many", *[4] * 500), request("one", 4, arrived=0.0))
    found: list[tuple[str, int]] = []
    for _ in range(WINDOW // BATCHING["max_rows"]):
        found += taken(mine, 1.0)
    assert ("one", 0) in found
    assert len([name for name, _ in found if name == "many"]) == len(found) - 1 > SHARE
    while part := taken(mine, 1.0):
        found += part
    assert len(found) == len(set(found)) == 501


def test_answered_ones_leave() -> None:
    late = request("late", 4, 5, deadline=2.0, bytes=10)
    mine = queue(request("a", 4, bytes=3), late)
    assert mine.bytes == 13 and mine.late(1.9) == [] and mine.late(2.0) == [late]
    mine.remove(late)
    assert (mine.bytes, len(mine)) == (3, 1)
    assert taken(mine, 3.0) == [("a", 0)] and mine.take(3.0) is None
