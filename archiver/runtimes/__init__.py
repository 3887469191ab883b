"""Every runtime there is: RUNTIMES[name], in the order in which `runtime: auto` prefers them.

To add one, see CONTRIBUTING.md: one file here, one in handlers/runtimes, one row below.
"""

from __future__ import annotations

from archiver.runtimes.base import Export, Runtime, Way
from archiver.tasks.base import FORWARD, GENERATE, SEQ2SEQ

__all__ = ["RUNTIMES", "Export", "Runtime", "Way", "serves_adapters", "serving_runtimes"]

_VLLM = "vllm>=0.33"

RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(
        name="openvino",
        devices=("cpu",),
        ways={
            FORWARD: Way(
                session="handlers.runtimes.openvino:OpenVinoSession",
                export="archiver.runtimes.openvino:export",
                packages=("openvino",),
                built_with=("onnx", "onnxscript", "openvino", "nncf"),
            ),
            GENERATE: Way(
                session="handlers.runtimes.openvino_paged:OpenVinoBackend",
                export="archiver.runtimes.openvino_text:export",
                packages=("openvino", "llguidance"),
                built_with=("openvino", "nncf", "optimum-intel"),
                score="archiver.runtimes.openvino_text:score",
                adapters=True,
            ),
            SEQ2SEQ: Way(
                session="handlers.runtimes.openvino_seq2seq:OpenVinoSeq2Seq",
                export="archiver.runtimes.openvino_seq2seq:export",
                packages=("openvino",),
                built_with=("openvino", "nncf"),
            ),
        },
    ),
    "onnxruntime": Runtime(
        name="onnxruntime",
        devices=("cpu", "cuda"),
        ways={
            FORWARD: Way(
                session="handlers.runtimes.onnxruntime:OnnxRuntimeSession",
                export="archiver.runtimes.onnxruntime:export",
                packages=("onnxruntime",),
                built_with=("onnx", "onnxscript", "onnxruntime"),
            )
        },
    ),
    "torch": Runtime(
        name="torch",
        devices=("cpu", "cuda"),
        ways={
            FORWARD: Way(
                session="handlers.runtimes.torch_forward:TorchSession",
                export="archiver.runtimes.torch:export_forward",
                packages=("transformers", "safetensors"),
                built_with=("onnx", "onnxscript"),
                carries_module=True,
            ),
            GENERATE: Way(
                session="handlers.runtimes.torch_generation:TorchBackend",
                export="archiver.runtimes.torch:export_generation",
                packages=("transformers", "safetensors", "llguidance"),
                built_with=("onnx", "onnxscript"),
                score="archiver.runtimes.torch:score",
                adapters=True,
            ),
            SEQ2SEQ: Way(
                session="handlers.runtimes.torch_seq2seq:TorchSeq2Seq",
                export="archiver.runtimes.torch:export_forward",
                packages=("transformers", "safetensors"),
                carries_module=True,
            ),
        },
        fallback=True,
    ),
    "vllm": Runtime(
        name="vllm",
        devices=("cuda",),
        ways={
            GENERATE: Way(
                session="handlers.runtimes.vllm:VllmBackend",
                export="archiver.runtimes.vllm:export",
                requirements=(_VLLM,),
                score="archiver.runtimes.vllm:score",
            )
        },
        automatic=False,
        needs={
            "vllm": f"this host has no vLLM to build, measure and check the archive with; run `pip install '{_VLLM}'` on a "
            "host with a CUDA device, or set serve.runtime to auto"
        },
    ),
}


def serves_adapters(runtime: Runtime, execution: str) -> bool:
    """Whether a runtime serves an execution with LoRA adapters."""
    return execution in runtime.ways and runtime.ways[execution].adapters


def serving_runtimes(execution: str, device: str) -> list[Runtime]:
    """The runtimes that serve an execution on a device, in the order of preference."""
    return [runtime for runtime in RUNTIMES.values() if execution in runtime.ways and device in runtime.devices]
