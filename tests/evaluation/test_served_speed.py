"""Archives compared as they are served: all their workers at once, in turns; what ends before it answers is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from archiver.evaluation import served_speed
from archiver.evaluation.served_speed import served_rates
from handlers.cpu import container_cores

ENTRY = """
import time
from types import SimpleNamespace
class Handler:
    def open(self, folder, threads, trust_files):
        assert trust_files
        self.input = SimpleNamespace(from_stored=lambda stored: stored["value"])
        (folder / "opened").open("a").write(f"{threads}x{self.streams}\\n")
    def find(self, values, parameters):
        assert parameters == {"top": 2} and set(values) <= set(range(600)), parameters
        (FOLDER / "rows").open("a").write(f"{len(values)}\\n")
        time.sleep(SECONDS * len(values))
"""


def archive(folder: Path, seconds: float, config: dict[str, int], entry: str = ENTRY) -> Path:
    folder.mkdir()
    (folder / "handlers").mkdir()
    (folder / "handlers/__init__.py").touch()
    (folder / "handlers/cpu.py").write_text("def threads_per_worker(workers):\n    return 4 // workers\n")
    code = f"from pathlib import Path\nFOLDER, SECONDS = Path({str(folder)!r}), {seconds}\n{entry}"
    (folder / "marpress_entry.py").write_text(code)
    (folder / "model-config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_speed, "SECONDS", 0.2)
    monkeypatch.setattr(served_speed, "_WARM", 0.05)


def test_streams_add_up_and_batches_hold_what_64_clients_send(tmp_path: Path) -> None:
    folders = {
        "two": archive(tmp_path / "two", 0.0002, {"minWorkers": 2}),
        "one": archive(tmp_path / "one", 0.0004, {"minWorkers": 1}),
    }
    inputs = [{"value": number} for number in range(600)]
    found = served_rates(folders, inputs, {"top": 2}, tmp_path)
    # A stream that sleeps for 0.2 ms an input answers 5000 a second at most, and four of them 20 000.
    assert 10_000 < found["two"] <= 20_000 and 5000 < found["one"] <= 10_000
    assert (folders["two"] / "opened").read_text() == "1x2\n1x2\n" and (
        folders["one"] / "opened"
    ).read_text() == "1x4\n"
    for name, workers in (("two", 2), ("one", 1)):
        assert set((folders[name] / "rows").read_text().split()) == {str(-(-64 // max(workers, container_cores())))}
    assert not (tmp_path / "inputs.json").exists()


def test_large_archives_are_opened_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: archive(tmp_path / name, 0.0001, {"minWorkers": 2}) for name in ("one", "two")}
    for folder in folders.values():
        (folder / "model.bin").write_bytes(bytes(100))
    open_now: list[str] = []
    most: list[int] = []
    enter, leave = served_speed._Side.__enter__, served_speed._Side.__exit__

    def entered(side: served_speed._Side) -> served_speed._Side:
        open_now.append("")
        most.append(len(open_now))
        return enter(side)

    def left(side: served_speed._Side, *error: object) -> None:
        open_now.pop()
        leave(side, *error)

    monkeypatch.setattr(served_speed._Side, "__enter__", entered)
    monkeypatch.setattr(served_speed._Side, "__exit__", left)
    for together, expected in ((400, [1, 2]), (399, [1, 1])):
        monkeypatch.setattr(served_speed, "TOGETHER", together)
        most.clear()
        assert served_rates(folders, [{"value": 1}], {"top": 2}, tmp_path).keys() == folders.keys()
        assert most == expected


def test_without_a_number_of_workers_there_is_one_for_each_core(tmp_path: Path) -> None:
    folder = archive(tmp_path / "a", 0.0001, {"batchSize": 1})
    served_rates({"a": folder}, [{"value": 1}], {"top": 2}, tmp_path)
    assert len((folder / "opened").read_text().split()) == container_cores()


def test_a_worker_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    broken = archive(tmp_path / "a", 0.1, {"minWorkers": 1}, "class Handler:\n    pass\n")
    with pytest.raises(ArithmeticError, match="before it had answered: AttributeError: 'Handler' object has no"):
        served_rates({"a": broken}, [{"value": 1}], {}, tmp_path)
