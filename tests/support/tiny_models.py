"""Tiny random models with tokenizers, from a config and a seed."""

from __future__ import annotations

from pathlib import Path

_WORDS_TEXT = """
a the this that film movie plot actor scene is was are not very never good bad fine great poor dull boring
bright warm funny slow fast long short story music sound man woman dog cat plays runs eats reads writes sings in
on at of and or but with without one two three , . ! ? ' - ab cd un ##ed ##ing ##ly ##s ##er ##est ##n ##t
"""
WORDS = tuple(_WORDS_TEXT.split())
SENTENCES = (
    "this film is very good",
    "a dull and boring story",
    "the man plays music in the warm scene",
    "the dog runs fast, the cat eats!",
    "not one funny scene",
    "a great actor in a poor plot",
)


DECODERS = ("llama", "mistral", "qwen2", "gpt2")
# What some families need beside the common sizes to be small and like their real models.
_MORE: dict[str, dict[str, object]] = {
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "mpnet": {"max_position_embeddings": 66},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8},
}


def build_tiny_model(path: Path, kind: str, task: str, **config: object) -> None:
    """Save a random model of 2 layers × 32, 4 heads, with its tokenizer: safetensors, from seed 0."""
    import torch
    import transformers

    from archiver.tasks import TASKS

    if task == "text-generation":
        return build_tiny_decoder(path, kind, **config)
    tokenizer = _bpe_tokenizer() if kind in ("roberta", "xlm-roberta", "camembert") else _wordpiece_tokenizer()
    sizes = (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        if kind == "distilbert"
        else {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    )
    positions = {"max_position_embeddings": 66, "pad_token_id": 1} if tokenizer.pad_token_id == 1 else {
        "max_position_embeddings": 64, "pad_token_id": 0
    }  # fmt: skip
    labels = {} if "id2label" in config else {"num_labels": 2}
    settings = {"vocab_size": len(tokenizer), **labels, **sizes, **positions, **_MORE.get(kind, {}), **config}
    auto = getattr(transformers, TASKS[task].auto_class)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(transformers.AutoConfig.for_model(kind, **settings))
        # transformers initialises near zero; larger weights give answers that differ between texts.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def build_tiny_decoder(path: Path, kind: str, **config: object) -> None:
    """Save a random language model of 2 layers × 32, 4 heads, 64 positions, 2 KV heads where the family groups them.

    Its byte-level BPE of some 400 tokens takes every text; llama and mistral begin with <s>. Tied where the family ties.
    """
    import torch
    import transformers

    tokenizer = _decoder_tokenizer(begins=kind in ("llama", "mistral"))
    sizes: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    settings = {"vocab_size": len(tokenizer), **sizes, **special, **_MORE.get(kind, {}), **config}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))
        # transformers initialises near zero; larger weights give continuations that differ between texts.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _decoder_tokenizer(begins: bool):  # type: ignore[no-untyped-def]
    from tokenizers import processors

    tokenizer = _bpe_tokenizer()
    first = "<s> " if begins else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A", pair=f"{first}$A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def _wordpiece_tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*special, *WORDS, *letters]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    )


def _bpe_tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, " ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", tokenizer.token_to_id("</s>")), cls=("<s>", tokenizer.token_to_id("<s>"))
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>"},
        **{"eos_token": "</s>", "mask_token": "<mask>"},
    )
