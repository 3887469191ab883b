"""A recogniser of spoken digits, trained from nothing by the project's own retraining code: a model to try recipes on.

    python -m benchmarks.training.digits OUT_DIR [--speaker NAME] [--steps N]

Writes OUT_DIR/model (a Wav2Vec2ForCTC whose words are the digits), OUT_DIR/train.tsv and OUT_DIR/validation.tsv (the
speaker who was held out). Needs the real recordings (environment variable MARPRESS_SHARED, or ../shared beside the
repository). An interrupted run goes on from its checkpoint.

Each step sees recordings that were never heard before: in other voices (other formants, faster or slower, higher or
lower), in another room (a random filter), with noise. Without that, four voices say little about a fifth.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.compression.context import StageContext
from archiver.compression.objective import Objective
from archiver.compression.retrain.objectives import ctc_loss
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from benchmarks.table import SHARED
from benchmarks.training.log_mel import LAYERS, RATE, listen
from benchmarks.training.voices import another_voice, in_a_room, other_consonants
from handlers.architecture.outputs.audio import SamplesWithHead
from handlers.inputs.media.audio_file import AudioReader, Recording

SEED = 0
BLANK = 0
VOCABULARY = ["<pad>", "<unk>", "|", *"0123456789"]
LONGEST = 0.8  # seconds of a recording that is learnt from
NEIGHBOURS = 200  # recordings as long, on either side, that a batch is drawn from: little of it is padding
VOICES = 8  # others that each recording is spoken in
MODEL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "pad_token_id": BLANK, "hidden_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 256, "do_stable_layer_norm": True, "initializer_range": 0.08,
    **LAYERS, "conv_dim": (*LAYERS["conv_dim"], 128), "conv_kernel": (*LAYERS["conv_kernel"], 3),
    "conv_stride": (*LAYERS["conv_stride"], 2), "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 8,
    "hidden_dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "feat_proj_dropout": 0.2,
    "final_dropout": 0.0, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "layerdrop": 0.0,
    "apply_spec_augment": False,
}  # fmt: skip


class Digits:
    """Recordings by speaker and digit, at RATE."""

    def __init__(self, folder: Path) -> None:
        reader = AudioReader(RATE, 10.0)
        self.files: dict[str, list[tuple[Path, int]]] = {}
        self.samples: dict[Path, np.ndarray] = {}
        for path in sorted(folder.glob("*.wav")):
            digit, speaker, _ = path.stem.split("_")
            self.files.setdefault(speaker, []).append((path, int(digit)))
            self.samples[path] = reader.read(Recording(path.read_bytes(), path.name))


class Heard(Sequence[Mapping[str, torch.Tensor]]):
    """Training batches, each made when it is asked for, from its place and the seed alone."""

    def __init__(self, digits: Digits, speakers: Sequence[str], steps: int, rows: int, seed: int) -> None:
        self.steps, self.rows, self.seed = steps, rows, seed
        random = np.random.default_rng(seed)
        files = [file for speaker in speakers for file in digits.files[speaker]]
        kept = [file for file in files if len(digits.samples[file[0]]) < LONGEST * RATE]
        self.spoken = [(_voices(digits.samples[path], random), digit) for path, digit in kept]
        self.spoken.sort(key=lambda one: len(one[0][0]))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, place: Any) -> Any:
        random = np.random.default_rng([self.seed, place])
        # The centre may lie beyond the ends: the shortest and the longest are then drawn as often as all others.
        centre = int(random.integers(-NEIGHBOURS, len(self.spoken) + NEIGHBOURS))
        first, last = max(0, centre - NEIGHBOURS), min(len(self.spoken), centre + NEIGHBOURS)
        chosen = [self.spoken[int(place)] for place in random.integers(first, max(last, first + 1), self.rows)]
        return batch_of([_heard(voices, random) for voices, _ in chosen], [str(digit) for _, digit in chosen])


def _voices(samples: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """A recording, and the same in other voices: slower or faster by up to 30 %, formants moved by up to 8 %."""
    found = [samples]
    for _ in range(VOICES):
        speed, formants = math.exp(random.uniform(-0.3, 0.3)), np.exp(random.uniform(-0.08, 0.08, 4))
        found.append(another_voice(samples, speed, formants))
    return found


def _heard(voices: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """One of the voices up to a fifth higher or lower, with other consonants, between two moments of silence, in a room."""
    samples = other_consonants(voices[int(random.integers(len(voices)))], random)
    places = np.arange(0, len(samples) - 1, math.exp(random.uniform(-0.2, 0.2)))
    spoken = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    before, behind = (np.zeros(int(random.uniform(0.0, 0.08) * RATE), np.float32) for _ in range(2))
    return in_a_room(np.concatenate([before, spoken, behind]), random)


def normalised(samples: np.ndarray) -> np.ndarray:
    """As Wav2Vec2FeatureExtractor does with do_normalize."""
    found: np.ndarray = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    return found


def batch_of(recordings: Sequence[np.ndarray], texts: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """input_values and attention_mask [rows, samples]; labels as `ctc_loss` takes them, where there are texts."""
    longest = -(-max(map(len, recordings)) // 4096) * 4096  # few shapes: a convolution is prepared for each
    values = np.zeros((len(recordings), longest), np.float32)
    mask = np.zeros((len(recordings), longest), np.int64)
    for row, samples in enumerate(recordings):
        values[row, : len(samples)] = normalised(samples)
        mask[row, : len(samples)] = 1
    batch = {"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}
    if texts:
        labels = np.full((len(texts), 2 + max(map(len, texts))), -100, np.int64)
        for row, text in enumerate(texts):
            labels[row, :2] = frames_of(len(recordings[row])), BLANK
            labels[row, 2 : 2 + len(text)] = [VOCABULARY.index(sign) for sign in text.replace(" ", "|")]
        batch["labels"] = torch.from_numpy(labels)
    return batch


def frames_of(samples: int) -> int:
    """How many frames the model makes of so many samples."""
    for kernel, stride in zip(MODEL["conv_kernel"], MODEL["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def new_model() -> Any:
    """The model with random weights, but for its ears: they hear mel bands, as other recognisers do."""
    import transformers

    torch.manual_seed(SEED)
    model: Any = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**MODEL))
    listen(model)
    return model.eval()


def word_accuracy(module: torch.nn.Module, digits: Digits, speaker: str) -> float:
    """The share of a speaker's recordings whose whole transcript is right."""
    right = 0
    files = digits.files[speaker]
    with torch.inference_mode():
        for start in range(0, len(files), 50):
            members = files[start : start + 50]
            recordings = [digits.samples[path] for path, _ in members]
            logits = module(**batch_of(recordings))
            for row, (path, digit) in enumerate(members):
                ids = logits[row, : frames_of(len(digits.samples[path]))].argmax(-1)
                said = [int(i) for i in torch.unique_consecutive(ids) if int(i) != BLANK]
                right += said == [VOCABULARY.index(str(digit))]
    return right / len(files)


def write_lists(digits: Digits, speaker: str, folder: Path) -> None:
    """train.tsv and validation.tsv: path from the list, tab, transcript."""
    for name, speakers in (("train", set(digits.files) - {speaker}), ("validation", {speaker})):
        rows = [(os.path.relpath(path, folder), digit) for who in sorted(speakers) for path, digit in digits.files[who]]
        text = "".join(f"{path}\t{digit}\n" for path, digit in rows)
        (folder / f"{name}.tsv").write_text("audio\ttranscript\n" + text, encoding="utf-8")


def write_model(model: Any, folder: Path) -> None:
    """The model directory as transformers writes it, with vocabulary and feature settings."""
    model.save_pretrained(folder)
    numbers = {token: place for place, token in enumerate(VOCABULARY)}
    documents = {
        "vocab.json": numbers,
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "bos_token": None,
            "eos_token": None, "word_delimiter_token": "|", "do_lower_case": False,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "feature_size": 1,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": RATE,
        },
    }  # fmt: skip
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--speaker", default="yweweler", help="who is held out")
    parser.add_argument("--steps", type=int, default=3500)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits = Digits(SHARED / "data/spoken-digits")
    others = [name for name in sorted(digits.files) if name != options.speaker]
    model = new_model()
    module = SamplesWithHead(model)
    settings = Retrain(
        epochs=1, learning_rate=1e-3, teacher="none", weight_decay=0.05, seed=SEED, precision="fp32", dropout=True
    )
    context = StageContext(
        module=module,
        teacher=module,
        objective=Objective(distance=_no_teacher, loss=ctc_loss),
        calibrate=lambda samples: [],
        train=lambda rows, seed: Heard(digits, others, options.steps, rows, seed),
        measure=dict,
        say=lambda line: print(line, flush=True),
        checkpoint=options.out / "checkpoint",
    )
    started = time.perf_counter()
    done = train(model, settings, context)
    print(f"{done.steps} steps in {time.perf_counter() - started:.0f} s")
    write_model(model, options.out / "model")
    write_lists(digits, options.speaker, options.out)
    for speaker in digits.files:
        held = " (held out)" if speaker == options.speaker else ""
        print(f"word accuracy of {speaker}{held}: {100 * word_accuracy(module.eval(), digits, speaker):.2f} %")


def _no_teacher(
    outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    raise NotImplementedError("there is no teacher")


if __name__ == "__main__":
    main()
