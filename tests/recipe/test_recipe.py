"""Recipes: the contract's own example, every kind of mistake, overrides, and what goes into the archive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from recipes import CONTRACT, LEAST, load, mistakes

from archiver.compression import METHODS
from archiver.compression.quantize.options import StaticInt8
from archiver.recipe.plain import as_dict
from archiver.spec import DataSpec, ServeSpec


@pytest.fixture
def folder(recipe_folder: Path) -> Path:
    return recipe_folder


def test_the_contracts_recipe(folder) -> None:
    recipe = load(folder, CONTRACT)
    assert recipe.model == folder / "minilm-sst2"
    assert recipe.data == DataSpec(folder / "sst2/train.tsv", folder / "sst2/dev.tsv", {"text": 0, "label": 1})
    (stage,) = recipe.compress
    assert (stage.label, stage.options) == ("quantize/static-int8", StaticInt8(samples=300))
    assert recipe.gate is not None
    assert (recipe.gate.max_drop, recipe.gate.min_speedup, recipe.gate.max_size_mb) == ({"accuracy": 0.01}, 2.0, 25.0)
    assert recipe.gate.metrics == ("accuracy",)
    assert recipe.serve == ServeSpec()


def test_the_least_recipe_has_the_contracts_defaults(folder) -> None:
    recipe = load(folder, LEAST)
    assert (recipe.version, recipe.compress, recipe.gate, recipe.data) == ("v1", (), None, DataSpec())
    assert recipe.serve == load(folder, CONTRACT).serve


@pytest.mark.parametrize("written", ["none", "[]", "", "null"])
def test_nothing_to_compress(folder, written) -> None:
    assert load(folder, f"{LEAST}compress: {written}\n").compress == ()


@pytest.mark.parametrize(("written", "read"), [("1.0", "1.0"), ("1.10", "1.10"), ("2", "2"), ("'3.0'", "3.0")])
def test_a_version_is_what_is_written(folder, written, read) -> None:
    assert load(folder, f"{LEAST}version: {written}\n").version == read


# (line added to the least recipe, which has three; what the one mistake must say)
SINGLE = [
    ("verson: 1.0", "recipe.yaml:4: unknown key 'verson' in a recipe; did you mean 'version'?"),
    ("batch_size: 8", "recipe.yaml:4: unknown key 'batch_size' in a recipe; it belongs under serve:"),
    ("serve: {name: x}", "unknown key 'name' in serve; it belongs at the top level"),
    ("name: again", "recipe.yaml:4: duplicate key 'name': it stands already at recipe.yaml:1; keep one"),
    ("version: [1]", "version must be a string of letters"),
    ("version: true", "version must be a string of letters"),
    ("version: 1/2", "version must be a string of letters"),
    ("serve: 3", "serve must be a mapping with keys among runtime"),
    ("serve: {runtime: onxruntime}", "serve.runtime must be one of auto, openvino, onnxruntime, torch, vllm; found"),
    ("serve: {device: gpu}", "serve.device must be one of cpu, cuda; found 'gpu'"),
    ("serve: {batch_size: true}", "serve.batch_size must be an integer from 1 to 4096; found true"),
    ("serve: {batch_size: 8.5}", "serve.batch_size must be an integer from 1 to 4096; found 8.5"),
    ("serve: {batch_size: '8'}", "serve.batch_size must be an integer from 1 to 4096; found '8'"),
    ("serve: {batch_size: }", "serve.batch_size must be an integer from 1 to 4096; found nothing"),
    ("serve: {workers: some}", "serve.workers must be an integer from 1 to 1024, or auto; found 'some'"),
    ("serve: {workers: 0}", "serve.workers must be an integer from 1 to 1024, or auto; found 0"),
    ("serve: {max_batch_delay_ms: 0}", "serve.max_batch_delay_ms must be an integer from 1 to 60000; found 0"),
    ("serve: {examples: gone.txt}", "serve.examples: gone.txt does not exist (looked in "),
    ("serve: {examples: sst2}", "serve.examples: sst2 is a directory; name one file in it"),
    (
        "serve: {runtimes: openvino}",
        "serve.runtimes must be a list of at least two different runtimes; found 'openvino'",
    ),
    ("serve: {runtimes: [openvino]}", "serve.runtimes must be a list of at least two different runtimes; found a list"),
    (
        "serve: {runtimes: [torch, torch]}",
        "serve.runtimes must be a list of at least two different runtimes; found a list",
    ),
    ("serve: {runtimes: [openvino, onxruntime]}", "serve.runtimes.1 must be one of openvino, onnxruntime, torch, vllm"),
    (
        "serve: {runtimes: [openvino, vllm]}",
        "text-classification is not served with vllm: use openvino, onnxruntime or",
    ),
    (
        "serve: {runtimes: [openvino, onnxruntime], device: cuda}",
        "serve.device cuda cannot be run by openvino: use onnxruntime, torch, or device cpu",
    ),
    (
        "serve: {runtimes: [openvino, onnxruntime], runtime: torch}",
        "serve.runtime is torch, and serve.runtimes names several: remove one of them",
    ),
    (
        "serve: {runtimes: [openvino, onnxruntime], precision: bf16}",
        "serve.precision is bf16, which OpenVINO alone computes with, and serve.runtimes names several",
    ),
    ("serve: {choose_at_load: false}", "serve.choose_at_load says nothing without serve.runtimes"),
    ("serve: {runtime: openvino, device: cuda}", "serve.device cuda cannot be run by openvino: use onnxruntime"),
    (
        "data: x",
        "data must be a mapping with keys among train, validation, columns, context, windows, items, min_count; found 'x'",
    ),
    ("data: {train: gone.tsv}", "data.train: gone.tsv does not exist (looked in "),
    ("data: {train: minilm-sst2}", "data.train: minilm-sst2 is a directory; name one file in it"),
    ("data: {train: recipe.yaml}", "data.train: recipe.yaml has the suffix '.yaml'; allowed: .tsv, .csv"),
    ("data: {train: 3}", "data.train must be a file's path (.tsv"),
    ('data: {train: "a\\0b"}', "does not exist"),
    ("data: {train: hub://a}", "data.train: hub://a is not hub://name[/config]:split, for example"),
    ("data: {train: hub://a/b/c/d:e}", "is not hub://name[/config]:split"),
    ("data: {train: embedded:perl}", "data.train: embedded:perl is not embedded; allowed: embedded:cpython,"),
    ("data: {windows: all}", "data.windows is for text-generation, the task is text-classification"),
    (
        "compress: [{quantize: {method: dynamic-int8, measure: 1}}]",
        "compress.0.quantize.measure must be true or false; found 1",
    ),
    ("data: {context: 256}", "data.context is for text-generation, the task is text-classification"),
    ("data: {columns: {label: 1}}", "data.columns lacks the key 'text'"),
    ("data: {columns: {text: 0, lable: 1}}", "unknown key 'lable' in data.columns; did you mean 'label'?"),
    ("data: {columns: {text: -1}}", "data.columns.text must be a column's name, or its position from 0"),
    ("data: {columns: {text: true}}", "data.columns.text must be a column's name, or its position from 0"),
    ("data: {columns: {text: 0, label: x}}", "data.columns mixes names and positions"),
    ("data: {columns: {text: 0, label: 0}}", "data.columns.label is column 0, which another key has already"),
    ("compress: quantize", "compress must be a list of stages such as"),
    ("compress: [quantize]", "compress.0 must be one verb with its options, such as"),
    ("compress: [{quantize: static-int8}]", "compress.0.quantize must be a mapping such as"),
    ("compress: [{quantise: {}}]", "compress.0: unknown verb 'quantise'; did you mean 'quantize'?; allowed: "),
    ("compress: [{quantize: {}, b: 1}]", "compress.0 must be one verb with its options, such as"),
    ("compress: [{quantize: {bits: 8}}]", "compress.0.quantize lacks the key 'method'; allowed: dynamic-int8, static"),
    ("compress: [{quantize: {method: static-int7}}]", "unknown quantize method 'static-int7'; did you mean 'static-in"),
    ("compress: [{quantize: {method: dynamic-int8, samples: 3}}]", "unknown key 'samples' in quantize dynamic-int8"),
    (
        "compress: [{quantize: {method: weight-only, bits: 5}}]",
        "compress.0.quantize.bits must be one of 8, 6, 4, 3, 2;",
    ),
    ("compress: [{quantize: {method: weight-only, targets: 3}}]", "compress.0.quantize.targets must be a glob over"),
    ("compress: [{quantize: {method: weight-only, ignore: ['']}}]", "compress.0.quantize.ignore must be a glob over"),
    ("compress: [{quantize: {method: static-int8}}]", "compress.0: quantize/static-int8 is calibrated on data.train"),
    (
        "compress: [{quantize: {method: weight-only}}, {quantize: {method: weight-only}}]",
        "compress.1: quantize/weight-only stands after quantize/weight-only: quantize once, as the last stage",
    ),
    (
        "compress: [{quantize: {method: weight-only, max_drop: {accuracy: 0.1}}}]",
        "max_drop is measured on data.validat",
    ),
    ("gate: {}", "gate has no bound: add one, or remove the key gate"),
    ("gate: {max_drop: 0.01}", "gate.max_drop must be a mapping {metric: number} of accuracy, f1, cross_entropy"),
    ("gate: {max_drop: {acuracy: 0.01}}", "unknown metric 'acuracy' for this task; did you mean 'accuracy'?"),
    ("gate: {min: {cosine: 0.9}}", "gate.min: unknown metric 'cosine' for this task; allowed: accuracy, f1, cross_"),
    ("gate: {max_drop: {accuracy: 0.01}}", "gate.max_drop is measured on data.validation, which is missing: add it"),
    ("gate: {min_speedup: 2}", "gate.min_speedup is measured over data.validation, which is missing: add it"),
    ("gate: {min_speedup: 0}", "gate.min_speedup must be a number above 0 and at most 1000; found 0"),
    ("gate: {max_size_mb: -1}", "gate.max_size_mb must be a number above 0; found -1"),
    ("gate: {max_size_mb: .nan}", "gate.max_size_mb must be a number above 0; found .nan"),
    ("gate: {max_size_mb: .inf}", "gate.max_size_mb must be a number above 0; found .inf"),
]


@pytest.mark.parametrize(("line", "expected"), SINGLE, ids=[line for line, _ in SINGLE])
def test_one_mistake_is_one_line_with_its_place(folder, line, expected) -> None:
    (problem,) = mistakes(folder, f"{LEAST}{line}\n")
    assert problem.startswith("recipe.yaml:4: ")
    assert expected in problem


def test_several_runtimes(folder) -> None:
    serve = load(folder, f"{LEAST}serve: {{runtimes: [onnxruntime, openvino], choose_at_load: false}}\n").serve
    assert (serve.runtimes, serve.choose_at_load, serve.runtime) == (("onnxruntime", "openvino"), False, "auto")
    # A recipe that says `runtime: auto` may be overridden; as in an archive, what says nothing is left out.
    recipe = load(folder, f"{LEAST}serve: {{runtime: auto}}\n", "serve.runtimes=[openvino, onnxruntime]")
    carried = as_dict(recipe)["serve"]
    assert carried["runtimes"] == ["openvino", "onnxruntime"] and carried["choose_at_load"] is True
    assert "runtime" not in carried
    assert not {"runtimes", "choose_at_load"} & as_dict(load(folder, LEAST))["serve"].keys()
    writes = LEAST.replace("text-classification", "text-generation")
    (problem,) = mistakes(folder, f"{writes}serve: {{runtimes: [openvino, onnxruntime]}}\n")
    assert problem == (
        "recipe.yaml:4: serve.runtimes is for tasks that answer with one pass, and text-generation writes token by token: "
        "name one runtime in serve.runtime"
    )


WITH_DATA = LEAST + "data: {validation: sst2/dev.tsv, columns: {text: 0, label: 1}}\n"
GATES = [
    ("max_drop: {accuracy: 1}", "gate.max_drop.accuracy must be a number from 0 to 0.99; found 1"),
    ("max_drop: {accuracy: low}", "gate.max_drop.accuracy must be a number from 0 to 0.99; found 'low'"),
    ("max_drop: {cross_entropy: 0.1}", "cross_entropy is better when lower: bound it with max_increase"),
    ("max_increase: {accuracy: 0.1}", "accuracy is better when higher: bound it with max_drop or min"),
    ("min: {cross_entropy: 0.1}", "cross_entropy is better when lower: bound it with max_increase"),
    ("min: {accuracy: 90}", "gate.min.accuracy must be a number from 0 to 1; found 90"),
    ("max_drop: {}", "gate.max_drop is empty: name a metric (accuracy, f1, cross_entropy, agreement)"),
]


@pytest.mark.parametrize(("line", "expected"), GATES)
def test_gate_bounds(folder, line, expected) -> None:
    (problem,) = mistakes(folder, f"{WITH_DATA}gate:\n  {line}\n")
    assert problem.startswith("recipe.yaml:6: ") and expected in problem


def test_metrics_that_need_labels_or_pairs(folder) -> None:
    gate = "gate:\n  min: {accuracy: 0.9, agreement: 0.9}\n"
    (problem,) = mistakes(folder, f"{LEAST}data: {{validation: sst2/dev.tsv, columns: {{text: 0}}}}\n{gate}")
    assert "gate.min: accuracy needs data.columns.label: name that column" in problem
    (problem,) = mistakes(folder, f"{LEAST}data: {{validation: sst2/texts.txt}}\n{gate}")
    assert "accuracy needs a label; data.validation texts.txt is plain text" in problem
    embedding = LEAST.replace("text-classification", "feature-extraction")
    (problem,) = mistakes(
        folder, f"{embedding}data: {{validation: embedded:cpython}}\ngate: {{min: {{spearman: 0.8}}}}\n"
    )
    assert "spearman needs a label and a text_pair; data.validation embedded:cpython:validation is plain" in problem


@pytest.mark.parametrize(
    "model",
    [
        "nowhere",
        "./org/name",
        "a/b/c",
        "org/name@",
        "a--b/c",
        "org/..",
        "~/gone",
        "/",
        "embedded:bert",
        "pypi:x==1",
        "''",
        "3",
    ],
)
def test_models_that_are_nothing(folder, model) -> None:
    if model == "/":
        assert load(folder, LEAST.replace("./minilm-sst2", model)).model == Path("/")
        return
    (problem,) = mistakes(folder, LEAST.replace("./minilm-sst2", model))
    assert problem.startswith("recipe.yaml:3: model")


@pytest.mark.parametrize(
    "model",
    [
        "org/name",
        "org/na.me-2@main",
        "o/n@refs/pr/1",
        "embedded:all-MiniLM-L6-v2",
        f"pypi:some-model==1.2.3#sha256={'0a' * 32}",
    ],
)
def test_models_from_elsewhere(folder, model) -> None:
    assert load(folder, LEAST.replace("./minilm-sst2", model)).model == model


def test_every_mistake_at_once_in_the_files_order(folder) -> None:
    text = CONTRACT.replace("name: sst2 ", "name: -x ").replace("min_speedup: 2.0", "min_speedup: fast")
    text = text.replace("./minilm-sst2", "./gone").replace("batch_size", "batchsize").replace("sst2/dev", "dev")
    found = mistakes(folder, text, "serve.workers=-1", "serve.port=80")
    assert [problem.split(" ")[0] for problem in found[:5]] == [f"recipe.yaml:{line}:" for line in (1, 4, 7, 13, 19)]
    assert found[5].startswith("--set serve.workers: serve.workers must be an integer")
    assert found[6].startswith("--set serve.port: unknown key 'port' in serve")
    assert len(found) == 7


def test_names_that_torchserve_takes_for_its_own_are_refused(folder) -> None:
    (problem,) = mistakes(folder, LEAST.replace("name: ", "name: token-"))
    assert "name begins with 'token': TorchServe takes every address with /token for that of its own keys" in problem
    assert "version begins with 'token'" in mistakes(folder, f"{LEAST}version: token1\n")[0]


def test_embedded_text_takes_the_keys_own_split(folder) -> None:
    data = load(folder, f"{LEAST}data: {{train: embedded:cpython, validation: embedded:cpython}}\n").data
    assert (data.train, data.validation) == ("embedded:cpython:train", "embedded:cpython:validation")


def test_the_archives_copy_holds_no_host_paths(folder) -> None:
    recipe = load(folder, CONTRACT, f"serve.examples={folder}/sst2/texts.txt")
    copy = as_dict(recipe)
    assert str(folder) not in json.dumps(copy)
    assert copy["model"] == "minilm-sst2" and copy["serve"]["examples"] == "texts.txt"
    assert copy["data"] == {"train": "train.tsv", "validation": "dev.tsv", "columns": {"text": 0, "label": 1}}
    body = {"method": "static-int8", "targets": ["*"], "ignore": [], "samples": 300}
    assert copy["compress"] == [{"quantize": body}]
    assert copy["gate"] == {"max_drop": {"accuracy": 0.01}, "min_speedup": 2.0, "max_size_mb": 25.0}
    assert "gate" not in as_dict(load(folder, LEAST))


def test_checking_a_recipe_imports_no_torch(folder) -> None:
    (folder / "recipe.yaml").write_text(CONTRACT)
    code = "import sys, archiver; archiver.load_recipe('recipe.yaml'); print('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_every_method_can_be_asked_for_by_its_name(folder) -> None:
    needed = {"prune": {"sparsity": 0.5}, "factorize": {"ratio": 0.5}}
    for verb, methods in METHODS.items():
        for name, method in methods.items():
            more = {"heads": 0.5} if name == "structured" else needed.get(verb, {})
            said = "".join(f", {key}: {value}" for key, value in more.items())
            recipe = load(
                folder, f"{WITH_DATA}compress: [{{{verb}: {{method: {name}{said}}}}}]\n", "data.train=hub://a/b:train"
            )
            assert recipe.compress[0].options == method.options(**more)
            assert recipe.compress[0].entry is method
