"""A classifier: MiniLM fine-tuned on SST-2 behind marpress, LitServe, BentoML and TorchServe's plain handler."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from archiver.bench.stock import build_stock
from archiver.packaging.mar import extract
from archiver.pipeline.build import build
from archiver.recipe.load import load_recipe
from benchmarks.peers.servers import Running, environment, process, torchserve
from benchmarks.table import RECIPES, SHARED
from handlers.cpu import container_cores

NAME = "sst2"
# What both scripts share: the archive's graph and tokenizer, one thread a worker, as the archive's own handler has them.
COMMON = """
import json, sys
from pathlib import Path
import numpy as np
folder, port, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
serving = json.loads((folder / "serving.json").read_text())

class Classifier:
    def __init__(self):
        sys.modules["openvino_telemetry"] = None
        import openvino as ov
        from tokenizers import Tokenizer
        core = ov.Core()
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        config |= serving["session"].get("config", {})
        self.request = core.compile_model(core.read_model(folder / "model.xml"), "CPU", config).create_infer_request()
        self.names = {name for port in self.request.model_inputs for name in port.get_names()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(serving["max_length"])
        self.tokenizer.enable_padding(pad_id=serving["pad_id"])
        self.labels = serving["labels"]

    def __call__(self, texts):
        found = self.tokenizer.encode_batch(texts)
        arrays = {"input_ids": [f.ids for f in found], "attention_mask": [f.attention_mask for f in found],
                  "token_type_ids": [f.type_ids for f in found]}
        arrays = {name: np.array(value, np.int64) for name, value in arrays.items() if name in self.names}
        logits = self.request.infer(arrays)[0]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        order = np.argsort(-scores, 1)
        return [[{"label": self.labels[i], "score": float(s[i])} for i in o] for s, o in zip(scores, order)]
"""
LITSERVE = """
import litserve as ls

class Api(ls.LitAPI):
    def setup(self, device):
        self.run = Classifier()
    def decode_request(self, request):
        return request["inputs"]
    def batch(self, inputs):
        return inputs
    def predict(self, texts):
        return self.run(texts)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.002, api_path="/predictions/sst2")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error", access_log=False)
"""
BENTOML = """
import bentoml

@bentoml.service(workers=WORKERS)
class Sst2:
    def __init__(self):
        self.run = Classifier()
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000, route="/predictions/sst2")
    def classify(self, inputs: list[str]) -> list[list[dict]]:
        return self.run(inputs)
"""
PACKAGES = {"litserve": ("litserve==0.2.19",), "bentoml": ("bentoml==1.4.40",)}
SIDES = ("marpress", "litserve", "bentoml", "stock")


def texts() -> list[str]:
    """What is sent."""
    lines = (SHARED / "data/sst2/dev.tsv").read_text(encoding="utf-8").splitlines()
    return [line.rsplit("\t", 1)[0] for line in lines]


def sides(folder: Path) -> dict[str, Callable[[], AbstractContextManager[Running]]]:
    """Name → what starts the server."""
    overrides = [
        f"model={SHARED / 'models/minilm-sst2'}", f"data.train={SHARED / 'data/sst2/train.tsv'}",
        f"data.validation={SHARED / 'data/sst2/dev.tsv'}", "data.columns={text: 0, label: 1}",
    ]  # fmt: skip
    recipe = load_recipe(RECIPES / "sst2.yaml", overrides)
    ours = build(recipe, folder / "auto").path
    graph = build(load_recipe(RECIPES / "sst2.yaml", [*overrides, "serve.runtime=openvino"]), folder / "openvino").path
    extract(graph, folder / "graph")
    stock = build_stock(
        SHARED / "models/minilm-sst2",
        recipe.task,
        "AutoModelForSequenceClassification",
        folder,
        name=NAME,
        max_length=128,
    )
    return {
        "marpress": lambda: torchserve(ours, NAME, _body),
        "litserve": lambda: _litserve(folder),
        "bentoml": lambda: _bentoml(folder),
        "stock": lambda: torchserve(stock, NAME, _body),
    }


def _body(text: str) -> object:
    return {"inputs": text}


def _litserve(folder: Path) -> AbstractContextManager[Running]:
    python = _python("litserve")
    place = _written(folder / "litserve", COMMON + LITSERVE)
    command = [str(python), "service.py", str(folder / "graph"), "{port}", str(container_cores())]
    return process(command, place, NAME, _body, _SURROUNDINGS)


def _bentoml(folder: Path) -> AbstractContextManager[Running]:
    code = COMMON.replace("int(sys.argv[2]), int(sys.argv[3])", "0, 0").replace(
        "sys.argv[1]", f"{str(folder / 'graph')!r}"
    )
    place = _written(folder / "bentoml", code + BENTOML.replace("WORKERS", str(container_cores())))
    program = str(_python("bentoml").with_name("bentoml"))
    command = [program, "serve", "service:Sst2", "--port", "{port}", "--host", "127.0.0.1"]
    return process(command, place, NAME, lambda text: {"inputs": [text]}, _SURROUNDINGS)


_SURROUNDINGS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _written(place: Path, code: str) -> Path:
    place.mkdir(exist_ok=True)
    (place / "service.py").write_text(code, encoding="utf-8")
    return place


def _python(package: str) -> Path:
    import openvino
    import tokenizers

    shared = [f"openvino=={openvino.__version__.split('-')[0]}", f"tokenizers=={tokenizers.__version__}", "numpy"]
    return environment(package, [*PACKAGES[package], *shared])
