"""Blocks of a cache: taken, shared by equal beginnings, given back, thrown away by age."""

from __future__ import annotations

from handlers.generation.paged.pages import Pages


def wrote(pages: Pages, ids: list[int]) -> list[int]:
    """A text's blocks, as far as they are not there: taken and named."""
    blocks = pages.beginning(ids)
    known = len(blocks)
    blocks += pages.take(-(-len(ids) // pages.size) - known)
    for place in range(known, len(ids) // pages.size):
        pages.name(blocks, place, ids[place * pages.size : (place + 1) * pages.size])
    return blocks


def test_an_equal_beginning_is_there_once() -> None:
    pages = Pages(8, 2)
    first = wrote(pages, [1, 2, 3, 4, 5])
    second = wrote(pages, [1, 2, 3, 4, 9, 9])
    assert second[:2] == first[:2] and len({*first, *second}) == 4 and pages.free == 4
    assert pages.beginning([3, 4, 1, 2, 0]) == []  # the same block behind another beginning is another
    pages.give_back(first)
    assert pages.free == 5  # two are still the second's
    pages.give_back(second)
    assert pages.free == 8
    assert pages.beginning([1, 2, 3, 4, 9, 9, 7, 7]) == second


def test_two_tokens_stay_to_be_read() -> None:
    pages = Pages(4, 2)
    pages.give_back(wrote(pages, [1, 2, 3, 4]))
    assert [len(pages.beginning([1, 2, 3, 4, 5, 6][:length])) for length in (2, 3, 4, 5, 6)] == [0, 0, 1, 1, 2]


def test_the_longest_unused_goes_first_and_ends_before_beginnings() -> None:
    pages = Pages(4, 2)
    old, new = wrote(pages, [1, 1, 2, 2]), wrote(pages, [3, 3, 4, 4])
    pages.give_back(old)
    pages.give_back(new)
    assert pages.take(1) == [old[1]]
    assert pages.beginning([1, 1, 2, 2, 0, 0]) == old[:1]
    assert pages.take(2) == [new[1], new[0]] and pages.free == 0


def test_what_two_wrote_at_once_is_found_by_one_of_them() -> None:
    pages = Pages(8, 2)
    one, other = pages.take(2), pages.take(2)
    for blocks in (one, other):
        pages.name(blocks, 0, [1, 2])
    pages.name(other, 1, [3, 4])
    found = pages.beginning([1, 2, 3, 4, 5, 6])
    assert found == [one[0], other[1]]
    for blocks in (one, other, found):
        pages.give_back(blocks)
    assert pages.free == 8


def test_texts_of_different_adapters_share_nothing() -> None:
    pages = Pages(8, 2)
    ids = [1, 2, 3, 4, 5, 6]
    found = {}
    for adapter in (0, 1, 2):
        assert pages.beginning(ids, adapter) == []
        found[adapter] = pages.take(2)
        for place in range(2):
            pages.name(found[adapter], place, ids[2 * place : 2 * place + 2], adapter)
    assert [pages.beginning(ids, adapter) for adapter in (0, 1, 2)] == [found[0], found[1], found[2]]
    assert pages.beginning(ids, 3) == []
