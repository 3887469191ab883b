"""The README's commands, run as they stand: only the ports and the key's place are this test's own."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from archiver.torchserve.server import TorchServe

README = (ROOT / "README.md").read_text(encoding="utf-8")
NAME = "all-MiniLM-L6-v2"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; those without a language for ""."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default, built by the command behind `make archive`."""
    store = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "archiver", "build", "archiver/recipes/default.yaml", "--model-store", str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return store / f"{NAME}.mar"


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[TorchServe]:
    with TorchServe([archive], config=ROOT / "config.properties") as running:
        running.wait_ready()
        yield running


def here(text: str, server: TorchServe) -> str:
    """The text with this server's addresses and key file in the place of `make serve`'s."""
    return (
        text.replace("http://127.0.0.1:8080", server.inference_url.rstrip("/"))
        .replace("127.0.0.1:7070", server.grpc_target)
        .replace(".torchserve/key_file.json", str(server.key_file))
        .replace(".venv/bin/python", sys.executable)
    )


def test_the_default_archive_is_small_and_faithful(archive: Path) -> None:
    command = [sys.executable, "-m", "archiver", "inspect", str(archive), "--json"]
    report = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert report["size"]["archive_bytes"] <= 26e6
    assert report["metrics"]["compressed"]["cosine"] >= 0.99
    assert report["metrics"]["compressed"]["recall@10"] >= 0.95
    assert report["model"]["source"] == f"sentence-transformers/{NAME}"
    assert not re.search(r'"/(home|root|tmp|work)', json.dumps(report))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_first_curl_gives_the_answer_that_is_shown(server: TorchServe) -> None:
    command = next(block for block in blocks("bash") if "curl -s http" in block)
    done = subprocess.run(["bash", "-c", here(command, server)], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = [float(number) for number in blocks("")[0].strip(" [\n").split(",")[:4]]
    found = [float(number) for number in done.stdout.strip(" [\n").split(",")[:4]]
    # Another processor may add in another order: the archive's own tolerance, of numbers up to about 0.2.
    assert found == pytest.approx(shown, abs=0.006)


def test_the_python_clients_print_what_they_promise(server: TorchServe) -> None:
    rest, grpc, other = blocks("python")
    assert "import json, openai" in other  # run by tests/clients, where that is installed
    printed = []
    for code in (rest, grpc):
        done = subprocess.run(
            [sys.executable, "-c", here(code, server)], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    assert printed == ["2 384", "384"]


def test_predict_as_shown(server: TorchServe) -> None:
    command = re.search(r"`marpress (predict http.*?)`", README)
    assert command is not None
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m archiver {here(command[1], server)}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)) == 384


def test_what_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in re.findall(r"`make ([a-z-]+)", README)} <= targets
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_the_recipe_that_is_shown_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("a fine film\t1\na dull one\t0\n", encoding="utf-8")
    (tmp_path / "minilm-sst2").mkdir()
    from archiver.recipe.load import load_recipe

    assert load_recipe(tmp_path / "my.yaml").compress[-1].label == "quantize/static-int8"


@pytest.mark.parametrize("path", sorted((ROOT / "archiver" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_sound(path: Path) -> None:
    from archiver.recipe.load import load_recipe

    recipe = load_recipe(path)
    assert isinstance(recipe.model, str), "a recipe that ships names a public id"
