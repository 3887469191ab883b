"""A Llama in a GGUF file as a model directory: weights and sizes by transformers' own reader, the tokenizer made here.

transformers 5.5 reads the weights exactly (names, rotary embedding, tied tables), but would give SmolLM's tokenizer
CodeLlama's tokens, another pre-tokenizer and the wrong end of text.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from archiver.errors import UnsupportedModelError
from archiver.models.config import quiet, reason
from archiver.models.files import WEIGHTS

# How a text is cut before its pieces become tokens, by the name that GGUF files have for it (llama.cpp, llama-vocab.cpp).
PRE_TOKENIZERS = ("smollm", "gpt-2")
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens


def convert(gguf: Path, folder: Path, name: str) -> None:
    """Write config.json, generation_config.json, model.safetensors (float16) and the tokenizer's files to `folder`.

    Args:
        gguf: a file of the architecture "llama" with a byte-level BPE tokenizer.
        folder: an empty one. name: of the model, in messages.
    Raises: UnsupportedModelError that says what the file holds otherwise.
    """
    try:
        from gguf import GGUFReader

        reader = GGUFReader(str(gguf))
        fields = {key: field.contents() for key, field in reader.fields.items()}
        problem = _problem(fields)
        if problem is None:
            ends = _write_tokenizer(fields, folder)
            problem = _write_model(gguf, len(reader.tensors), ends, folder)
    except ImportError as error:
        raise UnsupportedModelError(f"model {name} is a GGUF file: pip install gguf") from error
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes of two libraries' readers
        raise UnsupportedModelError(f"model {name}: its GGUF file cannot be read: {reason(error)}") from error
    if problem:
        raise UnsupportedModelError(f"model {name}: its GGUF file {problem}")


def _problem(fields: Mapping[str, Any]) -> str | None:
    """What keeps a file from being read as it was meant."""
    pre = fields.get("tokenizer.ggml.pre")
    if fields.get("general.architecture") != "llama":
        return f"is of the architecture {fields.get('general.architecture')!r}; llama is taken"
    if fields.get("llama.rope.scaling.type", "none") != "none":
        return f"scales its rotary embedding ({fields['llama.rope.scaling.type']!r}), which is not read"
    if fields.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        found = f"{fields.get('tokenizer.ggml.model')!r} with {pre!r}"
        return f"has the tokenizer {found}; 'gpt2' is taken, with {' or '.join(map(repr, PRE_TOKENIZERS))}"
    return None


def _write_model(gguf: Path, tensors: int, ends: dict[str, Any], folder: Path) -> str | None:
    """Write the weights and both configurations. Returns: what is wrong with the weights, else None."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # What from_pretrained does with a GGUF file, without accelerate, which it asks for. Its bar has no switch.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
        read: Callable[..., dict[str, Any]] = load_gguf_checkpoint
        state = read(str(gguf), return_tensors=True, model_to_load=model)["tensors"]
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = sorted(
        {
            name
            for name in expected.keys() | state.keys()
            if name not in state or state[name].shape != expected.get(name)
        }
    )
    if wrong:
        return f"lacks weights or has other ones: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}"
    if len(state) != tensors:
        return f"holds {tensors} tensors, of which the architecture has {len(state)}: others are not read"
    halves = {name: state.pop(name).to(torch.float16).contiguous() for name in expected}
    if not all(bool(half.isfinite().all()) for half in halves.values()):
        return "has weights that are no numbers, or too large for float16"
    save_file(halves, folder / WEIGHTS, metadata={"format": "pt"})
    for key, value in {**ends, "architectures": [type(model).__name__], "dtype": "float16"}.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    GenerationConfig(**ends).save_pretrained(folder)
    return None


def _write_tokenizer(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write tokenizer.json and what belongs to it.

    Returns: the ids that config.json has of it: bos_token_id, eos_token_id (several, where a turn ends with another token
    than a text), pad_token_id.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if fields["tokenizer.ggml.pre"] == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    marked = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in marked])
    whole = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])

    ids = {
        f"{name}_token": fields[f"tokenizer.ggml.{key}_token_id"]
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    if fields.get("tokenizer.ggml.add_bos_token"):
        begin = tokens[ids["bos_token"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, ids["bos_token"])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{name: tokens[number] for name, number in ids.items()},
    )
    fast.chat_template = fields.get("tokenizer.chat_template")
    fast.save_pretrained(folder)
    turn = fields.get("tokenizer.ggml.eot_token_id", ids["eos_token"])
    ends = ids["eos_token"] if turn == ids["eos_token"] else [ids["eos_token"], turn]
    return {f"{name}_id": number for name, number in (ids | {"eos_token": ends}).items() if name != "unk_token"}
