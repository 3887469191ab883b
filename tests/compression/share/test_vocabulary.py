"""share/vocabulary: the model answers as before on what it keeps, and everything that names a token names the new id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from objectives import OBJECTIVES
from stage_context import calibrated_on
from task_models import load_model
from tiny_models import SENTENCES
from tokenizers import Tokenizer

from archiver.compression.context import StageContext
from archiver.compression.factorize.low_rank import svd
from archiver.compression.factorize.options import Svd
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from archiver.compression.share.options import Vocabulary
from archiver.compression.share.vocabulary import check, chosen_ids, token_counts, vocabulary
from archiver.errors import RecipeError
from archiver.recipe.load import load_recipe
from archiver.state.constraints import Constraint, Mask, constrain, constrained, state_of
from handlers.architecture.structure import describe, rebuild

TRAIN = SENTENCES[:3]
KINDS = [
    ("bert", "text-classification"),
    ("distilbert", "feature-extraction"),
    ("roberta", "text-classification"),
    ("electra", "text-classification"),
    ("llama", "text-generation"),
    ("gpt2", "text-generation"),
]


class Case:
    """A tiny model, its tokenizer, and a StageContext over sentences."""

    def __init__(self, tiny_model, kind: str, task: str, texts: Sequence[str] = TRAIN, **config: object) -> None:
        path = tiny_model(kind, task, **config)
        self.model = load_model(path, task).eval()
        self.json = (path / "tokenizer.json").read_bytes()
        self.old = Tokenizer.from_buffer(self.json)
        self.texts = texts
        module = torch.nn.Identity()
        self.examples: StageContext = dataclasses.replace(
            calibrated_on([], module),
            train=lambda size, seed: [self.batch(text) for text in self.texts],
            tokenizer_json=lambda: state_of(self.model).tokenizer_json or self.json,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_buffer(state_of(self.model).tokenizer_json or self.json)

    def batch(self, text: str) -> dict[str, torch.Tensor]:
        ids = torch.tensor([self.tokenizer.encode(text).ids])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answer(self, text: str) -> torch.Tensor:
        with torch.no_grad():
            return self.model(**self.batch(text))[0]


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_answers_to_training_texts_stay(tiny_model, kind, task):
    case = Case(tiny_model, kind, task)
    before = [case.answer(text) for text in TRAIN]
    rows, parameters = case.old.get_vocab_size(), sum(p.numel() for p in case.model.parameters())
    report = vocabulary(case.model, Vocabulary(), case.examples)
    state = state_of(case.model)
    kept = len(state.old_ids)
    table = case.model.get_input_embeddings()
    assert table.weight.shape[0] == table.num_embeddings == case.model.config.vocab_size == kept < rows
    assert report.parameters < parameters
    assert report.notes[0].startswith(f"{kept} of {rows} tokens are kept")
    for text, was in zip(TRAIN, before, strict=True):
        now = case.answer(text)
        if task == "text-generation":
            was = was[..., state.old_ids]
        assert torch.allclose(now, was, atol=1e-5)
    assert torch.isfinite(case.answer("zebra Ünïcödé 東京 " + SENTENCES[5])).all()
    # Every id in the configs is the new one of the same token.
    original = load_model(tiny_model(kind, task), task)
    for mine, theirs in ((case.model.config, original.config),):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            now, was = getattr(mine, name, None), getattr(theirs, name, None)
            if was is not None and was < rows:
                assert state.old_ids[now] == was, name


@pytest.mark.parametrize("tied", [True, False])
def test_language_models_head_follows(tiny_model, tied):
    case = Case(tiny_model, "llama", "text-generation", tie_word_embeddings=tied)
    head = case.model.lm_head.weight.detach().clone()
    vocabulary(case.model, Vocabulary(), case.examples)
    assert torch.equal(case.model.lm_head.weight, head[state_of(case.model).old_ids])
    assert case.model.lm_head.out_features == case.model.lm_head.weight.shape[0]
    assert (case.model.lm_head.weight is case.model.model.embed_tokens.weight) == tied
    assert case.model.generation_config.eos_token_id == case.model.config.eos_token_id


def test_roberta_counts_positions_from_the_same_padding(tiny_model):
    case = Case(tiny_model, "roberta", "text-classification")
    vocabulary(case.model, Vocabulary(), case.examples)
    assert case.model.config.pad_token_id == case.model.get_input_embeddings().padding_idx == 1
    assert case.model.roberta.embeddings.position_embeddings.padding_idx == 1


def test_padding_that_moves(tiny_model):
    case = Case(tiny_model, "bert", "text-classification")
    mask_id = case.old.token_to_id("[MASK]")  # stands for a padding token in the middle of the table
    case.model.config.pad_token_id = case.model.get_input_embeddings().padding_idx = 30
    case.model.bert.embeddings.token_type_embeddings.padding_idx = None
    vocabulary(case.model, Vocabulary(), case.examples)
    old_ids = state_of(case.model).old_ids
    now = case.model.config.pad_token_id
    assert now != 30
    assert old_ids[now] == 30
    assert case.model.get_input_embeddings().padding_idx == now
    assert mask_id in old_ids


def test_the_skeleton_of_the_new_config_takes_the_weights(tiny_model):
    import transformers

    case = Case(tiny_model, "llama", "text-generation", tie_word_embeddings=True)
    vocabulary(case.model, Vocabulary(), case.examples)
    fresh = transformers.AutoModelForCausalLM.from_config(case.model.config, attn_implementation="eager")
    rebuild(fresh, describe(case.model))
    fresh.load_state_dict(case.model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**case.batch(TRAIN[0]))[0], case.answer(TRAIN[0]))


def test_counts_and_choice_by_hand(tiny_model):
    batches = [
        {"input_ids": torch.tensor([[3, 1, 1], [2, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])},
        {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[1, 1]])},
    ]
    counts = token_counts(calibrated_on(batches), 6)
    assert counts.tolist() == [0, 2, 1, 2, 1, 0]
    assert chosen_ids(counts, None) == [1, 2, 3, 4]
    assert chosen_ids(counts, 3) == [1, 2, 3]  # 2 and 4 are equals, the lower id first
    assert chosen_ids(counts, 9) == [1, 2, 3, 4]


def test_keep_a_number(tiny_model):
    case = Case(tiny_model, "bert", "text-classification", texts=SENTENCES)
    report = vocabulary(case.model, Vocabulary(keep=12), case.examples)
    tokens = set(case.tokenizer.get_vocab())
    assert {"a", "the", "[CLS]", "##z"} <= tokens
    assert "plays" not in tokens
    assert "[UNK]" not in case.tokenizer.encode("the man plays music").tokens
    assert "12 for data.train" in report.notes[0]
    assert "the others fall apart into kept ones" in report.notes[1]


def test_masks_and_factors_lose_the_same_rows(tiny_model):
    case = Case(tiny_model, "bert", "text-classification")
    name = "bert.embeddings.word_embeddings"
    weight = case.model.get_submodule(name).weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    constrain(case.model, name, Mask(mask))
    vocabulary(case.model, Vocabulary(), case.examples)
    kept = state_of(case.model).old_ids
    with constrained(case.model), torch.no_grad():
        case.model.get_submodule(name).parametrizations.weight.original.add_(1.0)
    assert torch.equal(case.model.get_submodule(name).weight != 0, mask[kept])


@pytest.mark.parametrize("execute", ["factored", "recombined"])
def test_factored_tables_lose_rows(tiny_model, execute):
    case = Case(tiny_model, "bert", "text-classification")
    svd(case.model, Svd(rank=6, targets=("*word_embeddings",), execute=execute), None)
    before = [case.answer(text) for text in TRAIN]
    vocabulary(case.model, Vocabulary(), case.examples)
    for text, was in zip(TRAIN, before, strict=True):
        assert torch.allclose(case.answer(text), was, atol=1e-5)
    kept = len(state_of(case.model).old_ids)
    if execute == "recombined":
        a, b = state_of(case.model).factors["bert.embeddings.word_embeddings"]
        assert (a.shape, b.shape) == ((kept, 6), (32, 6))
        assert torch.allclose(a @ b.T, case.model.get_input_embeddings().weight, atol=1e-5)
    else:
        assert case.model.get_input_embeddings().rows.num_embeddings == kept
        assert case.model.get_input_embeddings().padding_idx == 0


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_original_teaches_by_its_own_ids(tiny_model, kind):
    task = "text-generation" if kind == "llama" else "text-classification"
    case = Case(tiny_model, kind, task)
    seen: list[torch.Tensor] = []

    class Module(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model
            self.inputs = ("input_ids", "attention_mask")

        def forward(self, input_ids, attention_mask):
            seen.append(input_ids)
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    teacher = Module(load_model(tiny_model(kind, task), task))
    examples = dataclasses.replace(
        case.examples, module=Module(case.model), teacher=teacher, objective=OBJECTIVES[task]
    )
    vocabulary(case.model, Vocabulary(), examples)
    case.texts = TRAIN[:1]
    seen.clear()
    done = train(case.model, Retrain(epochs=1, precision="fp32", learning_rate=1e-9), examples)
    # The same text to both, so that the student is its teacher: nothing to learn but the rounding of kept answers (bf16).
    assert done.losses == [pytest.approx(0.0, abs=1e-4)]
    assert any(row.tolist() == [case.old.encode(TRAIN[0]).ids] for row in seen)


# ---- before any work


def test_check(tiny_model):
    case = Case(tiny_model, "bert", "text-classification")
    name, rows = "bert.embeddings.word_embeddings", case.old.get_vocab_size()
    assert check(case.model, Vocabulary()) == []
    assert check(case.model, Vocabulary(keep=rows)) == [
        f"keep is {rows}, and {name} has {rows} rows: nothing would be dropped; lower it"
    ]

    class Grid(Constraint):
        def forward(self, weight):
            return weight.round()

    constrain(case.model, name, Grid())
    (problem,) = check(case.model, Vocabulary())
    assert problem.startswith(f"the values of {name} were chosen by an earlier stage (Grid) for all rows together")
    with pytest.raises(RecipeError, match="share/vocabulary does not fit this model"):
        vocabulary(case.model, Vocabulary(), case.examples)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tiny_model):
    case = Case(tiny_model, "bert", "text-classification")
    tokenizer = Tokenizer.from_buffer(case.json)
    tokenizer.add_special_tokens(["<new>"])
    examples = dataclasses.replace(case.examples, tokenizer_json=lambda: tokenizer.to_str().encode())
    with pytest.raises(RecipeError, match="the embedding table has .* rows: they do not belong together"):
        vocabulary(case.model, Vocabulary(), examples)


@pytest.mark.parametrize("keep", ["0", "-3", "some", "0.5"])
def test_mistakes_of_a_recipe(recipe_folder, keep):
    path = recipe_folder / "recipe.yaml"
    path.write_text(
        "name: a\ntask: text-classification\nmodel: minilm-sst2\n"
        f"compress:\n  - share: {{method: vocabulary, keep: {keep}}}\n"
    )
    with pytest.raises(RecipeError, match=r"keep must be an integer of at least 1, or train"):
        load_recipe(path)


def test_it_needs_training_data(recipe_folder):
    path = recipe_folder / "recipe.yaml"
    path.write_text(
        "name: a\ntask: text-classification\nmodel: minilm-sst2\ncompress:\n  - share: {method: vocabulary}\n"
    )
    with pytest.raises(RecipeError, match=r"share/vocabulary learns from data\.train, which is missing"):
        load_recipe(path)
