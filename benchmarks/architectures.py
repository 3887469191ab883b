"""`make bench-architectures`: which architectures are taken, by which runtime, and what can be cut from them.

    python -m benchmarks.architectures [--table FILE] [--all] [KIND:FAMILY …]      KIND: encoder or decoder

Each family is a tiny model of random weights, made from transformers' own config: an encoder classifies into two labels, a
decoder continues text. It is built with 8-bit weights and `runtime: auto`, verified, and a recipe that cuts heads or
neurons is checked. --all: every family that transformers has for the two tasks, whatever can be made small. --table writes
the result into FILE as Markdown, between the marks that it finds there. Takes some 15 seconds a family.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archiver
from archiver.progress import Progress

ENCODERS = [
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "deberta-v2",
    "deberta",
    "modernbert",
    "albert",
    "ernie",
    "eurobert",
    "roformer",
    "convbert",
    "data2vec-text",
    "megatron-bert",
    "mobilebert",
    "qwen3",
    "llama",
    "gemma3_text",
]
DECODERS = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "starcoder2",
    "olmo2",
    "smollm3",
    "granite",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "stablelm",
    "cohere",
]
# Whatever a config has of these is made small.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "dim", "d_model", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("true_hidden_size", "intra_bottleneck_size", "moe_intermediate_size", "emb_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "global_attn_every_n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "ffn_dim", "n_inner"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TEXTS = (
    "the captain wrote a short letter to the harbour and waited for an answer",
    "a warm film with a poor plot and a great actor",
    "every engine has a part that nobody likes to clean",
    "not one of the three windows could be opened in winter",
)
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


@dataclass
class Row:
    """What was found of one family. cuts: what can be cut; refused: the reason where nothing can."""

    kind: str
    family: str
    runtime: str = ""
    cuts: str = ""
    note: str = ""

    @property
    def taken(self) -> bool:
        """Built and verified."""
        return bool(self.runtime)


def make(kind: str, family: str, folder: Path) -> None:
    """A model directory with its tokenizer."""
    import torch
    import transformers

    tokenizer = _tokenizer()
    base = transformers.AutoConfig.for_model(family)
    sizes = {name: value for name, value in _SIZES.items() if hasattr(base, name)}
    config = transformers.AutoConfig.for_model(family, **sizes, vocab_size=len(tokenizer))
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind == "decoder":
        auto = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def recipe(kind: str, family: str, model: Path, stage: dict[str, Any]) -> Path:
    """A recipe with a little data beside the model."""
    encoder = kind == "encoder"
    data: dict[str, Any]
    if encoder:
        rows = "".join(f"{text} {i}\t{i % 2}\n" for i in range(8) for text in _TEXTS)
        (model / "rows.tsv").write_text(rows, encoding="utf-8")
        data = {"validation": "rows.tsv", "columns": {"text": 0, "label": 1}}
    else:
        (model / "text.txt").write_text("\n".join(_TEXTS * 40), encoding="utf-8")
        data = {"validation": "text.txt", "context": 32}
    content = {
        "name": f"{kind}-{family}",
        "task": "text-classification" if encoder else "text-generation",
        "model": str(model),
        "data": data,
        "compress": [stage],
        "serve": {"max_length": 64},
    }
    path = model / "recipe.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def look_at(kind: str, family: str, folder: Path) -> Row:
    """Build, verify, and check what can be cut."""
    row, quiet = Row(kind, family), Progress(quiet=True)
    model = folder / f"{kind}-{family}"
    try:
        make(kind, family, model)
    except Exception as error:  # whatever transformers makes of a size that does not suit it
        row.note = f"no small model can be made: {_line(error)}"
        return row
    try:
        plain = archiver.load_recipe(recipe(kind, family, model, {"quantize": {"method": "weight-only", "bits": 8}}))
        built = archiver.build(plain, folder / "store", quiet)
        problems = archiver.verify(built.path)
        row.note = problems[0] if problems else ""
        row.runtime = "" if problems else built.manifest["runtime"]
        reasons = {name: why for name, why in built.timings["other_runtimes"].items() if "cannot" in why or ":" in why}
        if row.runtime == "torch" and reasons:
            row.note = _line(next(iter(reasons.values())))
        built.path.unlink()
    except archiver.ArchiverError as error:
        row.note = _line(error)
        return row
    except Exception as error:  # of transformers, too, whose forward does not run with every size
        row.note = f"failed: {type(error).__name__}: {_line(error)}"
        return row
    cuts = []
    for what in ("heads", "neurons"):
        stage = {"prune": {"method": "structured", what: 0.5, "importance": "magnitude"}}
        try:
            archiver.check(archiver.load_recipe(recipe(kind, family, model, stage)), quiet)
            cuts.append(what)
        except archiver.ArchiverError as error:
            reason = (error.problems or [error.message])[0]
            why = reason.rpartition("cannot be cut in ")[2].partition(": ")[2]
            row.note = row.note or f"{what}: {_line(why or reason)}"
    row.cuts = ", ".join(cuts)
    return row


def _line(error: object) -> str:
    return " ".join(str(error).replace("|", "/").split())[:200]


def families(every: bool) -> Iterator[tuple[str, str]]:
    """(kind, family): those of the table, or all that transformers has for the two tasks."""
    if not every:
        yield from (("encoder", name) for name in ENCODERS)
        yield from (("decoder", name) for name in DECODERS)
        return
    from transformers.models.auto import modeling_auto

    yield from (("encoder", n) for n in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    yield from (("decoder", n) for n in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def table(rows: Iterable[Row]) -> str:
    """Markdown, one line a family."""
    lines = ["| | family | runtime | can be cut | |", "|---|---|---|---|---|"]
    lines += [f"| {row.kind} | {row.family} | {row.runtime or '–'} | {row.cuts or '–'} | {row.note} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    """Print a line a family, then counts; with --table write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("families", nargs="*", metavar="KIND:FAMILY")
    options = parser.parse_args()
    wanted = [tuple(item.split(":", 1)) for item in options.families] or list(families(options.all))
    warnings.simplefilter("ignore")
    rows = []
    for kind, family in wanted:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            row = look_at(kind, family, Path(folder))
        rows.append(row)
        took = time.perf_counter() - started
        print(
            f"{kind}:{family}: {row.runtime or 'not taken'}; {row.cuts or '-'}; {row.note} ({took:.0f} s)", flush=True
        )
    taken = sum(row.taken for row in rows)
    fast = sum(row.runtime in ("openvino", "onnxruntime") for row in rows)
    cut = sum(bool(row.cuts) for row in rows)
    summary = f"{taken} of {len(rows)} taken, {fast} by OpenVINO or ONNX Runtime, {cut} can be cut"
    print(summary)
    if options.table is not None:
        text = options.table.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        options.table.write_text(f"{before}{BEGIN}\n{table(rows)}\n\n{summary}.\n{END}{after}", encoding="utf-8")
    return int(taken < len(rows))


if __name__ == "__main__":
    sys.exit(main())
