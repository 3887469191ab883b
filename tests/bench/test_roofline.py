"""How near an archive comes to what the host can do: the numbers hang together, and what cannot be counted is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from built import recipe_of

from archiver.bench import roofline
from archiver.cli import main
from archiver.pipeline import build as pipeline
from archiver.progress import Progress


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host can do is not what is looked at here."""
    monkeypatch.setattr(roofline, "_SIDE", 64)
    monkeypatch.setattr(roofline, "_COPIED", 1 << 20)
    monkeypatch.setattr(roofline, "_ROUNDS", 2)


def built(folder: Path, model: Path, runtime: str) -> Path:
    recipe = recipe_of(folder, model, serve={"max_length": 32, "runtime": runtime, "examples": 3})
    return pipeline.build(recipe, folder, Progress(quiet=True)).path


def test_an_encoder(tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar = built(tmp_path, tiny_model("bert"), "openvino")
    assert main(["bench", str(mar), "--roofline", "--recipe", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    reached = found["integer_gops"] + found["floating_gops"]
    share = (
        found["integer_gops"] / found["peaks"]["int8_gops"] + found["floating_gops"] / found["peaks"]["float32_gops"]
    )
    assert found["rows"] == 64 and reached > 0 and found["share"] == pytest.approx(share)
    assert main(["bench", str(mar), "--roofline"]) == 0
    assert "share of what the host could do: " in capsys.readouterr().out


def test_what_is_not_counted(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mar = built(tmp_path, tiny_model("bert"), "torch")
    assert main(["bench", str(mar), "--roofline"]) == 2
    assert "cannot be counted" in capsys.readouterr().err
    assert main(["bench", str(mar), "--roofline", "--against", "stock"]) == 2
    assert "--roofline measures one archive by itself: leave --against out" in capsys.readouterr().err
