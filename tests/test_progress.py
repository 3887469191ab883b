"""What a long command shows while it works: on a terminal, and where its lines go into a file."""

from __future__ import annotations

import io
import time

import pytest

from archiver.progress import Progress, _Step, counted, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_how_far_a_step_is_and_what_is_left() -> None:
    step = _Step("measure", None)
    step.started = 100.0
    assert step.line(112.0) == "  measure: 12 s"
    step.count = (0, 40, "windows", 104.0)
    assert step.line(112.0) == "  measure: 12 s, 0 of 40 windows"
    step.count = (10, 40, "windows", 104.0)  # 10 in 8 s: 30 more in 24
    assert step.line(112.0) == "  measure: 12 s, 10 of 40 windows, about 24 s left"
    expected = _Step("export", 60.0)
    expected.started = 100.0
    assert expected.line(112.0) == "  export: 12 s, about 48 s left"
    assert expected.line(170.0) == "  export: 70 s"  # nobody knows any more


def test_the_units_of_a_time() -> None:
    assert [duration(s) for s in (40, 100, 3600, 9000)] == ["40 s", "2 minutes", "60 minutes", "2.5 hours"]


def test_piped_lines_come_while_a_step_takes_long() -> None:
    stream = io.StringIO()
    progress = Progress(stream, every=0.05)
    with progress.step("measure"), counted(4, "windows") as done:
        done(3)
        time.sleep(0.3)
    *between, last = stream.getvalue().splitlines()
    assert between and all(line.startswith("  measure: 0 s, 3 of 4 windows") for line in between)
    assert last.startswith("  measure   ") and last.endswith(" s") and "\r" not in stream.getvalue()


def test_a_terminal_has_one_line_that_is_written_over() -> None:
    stream = Terminal()
    progress = Progress(stream, every=0.05)
    with progress.step("measure a model of a rather long name for a short step"):
        time.sleep(0.12)
        progress.say("    said")
    text = stream.getvalue()
    assert text.count("\n") == 2 and "\r" in text
    shown = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    assert shown[0] == "    said" and shown[1].endswith(" s")


def test_nothing_is_shown_without_a_step_or_when_quiet() -> None:
    with counted(2, "windows") as done:
        done(1)
    stream = io.StringIO()
    progress = Progress(stream, quiet=True, every=0.01)
    with progress.step("measure"), counted(2, "windows") as done:
        done(1)
        time.sleep(0.05)
    assert stream.getvalue() == "" and list(progress.seconds) == ["measure"]


def test_a_step_that_fails_ends_its_line() -> None:
    stream = Terminal()
    with pytest.raises(ValueError, match="boom"), Progress(stream).step("fails"):
        raise ValueError("boom")
    assert stream.getvalue().endswith("\n")


def test_steps_of_one_name_share_what_is_expected_of_them() -> None:
    progress = Progress(quiet=True)
    progress.expected["export"] = 10.0
    for done, left in ((0.0, 10.0), (4.0, 6.0), (12.0, None)):
        progress.seconds["export"] = done
        assert progress._left("export") == left
    assert progress._left("another") is None
