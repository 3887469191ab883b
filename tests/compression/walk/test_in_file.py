"""A large model's weights lie in a file while it is walked through, and are what they were."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only
from archiver.compression.walk import in_file as room
from archiver.compression.walk.in_file import in_file
from archiver.errors import ArchiverError
from archiver.host import drop_mapped


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 8, bias=False))
    made.append(torch.nn.Linear(8, 8, dtype=torch.float64))  # of another type: it stays
    made[2].weight = torch.nn.Parameter(torch.randn(2, 8, 16)[1])  # a view: it stays
    return made


def test_weights_are_what_they_were_and_changes_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "LARGE", 0)
    before, made = model(), model()
    identities = [id(weight) for weight in made.parameters()]
    with in_file(made, tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []  # it has no name
    assert [id(weight) for weight in made.parameters()] == identities
    drop_mapped()
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), made.parameters(), strict=True))
    whole = made[0].weight.untyped_storage().nbytes()
    assert whole == 4 * sum(one.numel() for one in (*made[0].parameters(), *made[1].parameters()))
    assert made[2].weight.untyped_storage().nbytes() == 4 * 2 * 8 * 16
    with torch.no_grad():
        made[0].weight.mul_(2)
    drop_mapped()
    assert torch.equal(made[0].weight, 2 * before[0].weight)
    twin = copy.deepcopy(made)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert torch.equal(made[0].weight, 2 * before[0].weight)


def test_a_small_model_stays_in_memory(tmp_path: Path) -> None:
    made = model()
    with in_file(made, tmp_path):
        pass
    assert made[0].weight.untyped_storage().nbytes() == 4 * made[0].weight.numel()


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch) -> None:
    def full(size: int, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "LARGE", 0)
    monkeypatch.setattr(room, "unnamed_file", full)
    with pytest.raises(
        ArchiverError, match="the model's weights need 0 MB in .* No space left on device; free some space"
    ):
        with in_file(model(), tmp_path):
            pass


def _resident_of_files() -> int:
    """Bytes of mapped files that this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssFile:", "RssShmem:")))


def test_a_stage_behind_the_walk_looks_at_one_weight_at_a_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "LARGE", 0)
    torch.manual_seed(0)
    made = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(16)])
    with in_file(made, tmp_path):
        pass
    before = _resident_of_files()
    weight_only(made, WeightOnly(bits=4, group_size=64, targets=tuple(map(str, range(16)))), calibrated_on([]))
    left = _resident_of_files() - before
    assert left < 16e6, f"{left / 1e6:.0f} of the 67 MB of weights stayed in memory"
