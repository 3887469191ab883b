"""A recogniser of spoken digits, trained from nothing by the project's own retraining code: a model to try recipes on.

    python -m benchmarks.train_digits OUT_DIR [--speaker NAME] [--steps N]

Writes OUT_DIR/model (a Wav2Vec2ForCTC of 1 M parameters whose words are the digits), OUT_DIR/train.tsv and
OUT_DIR/validation.tsv (the speaker who was held out). Needs the real recordings (environment variable MARPRESS_SHARED, or
../shared beside the repository). Takes a quarter of an hour on two cores; an interrupted run goes on from its checkpoint.

Each step sees recordings that were never heard before: one or two digits of a speaker in a row, faster or slower, in
another room (a random filter), louder or softer, with noise. Without that, four voices say little about a fifth.
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
from handlers.architecture.outputs.audio import SamplesWithHead
from handlers.inputs.media.audio_file import AudioReader, Recording

RATE = 16_000
SEED = 0
BLANK = 0
VOCABULARY = ["<pad>", "<unk>", "|", *"0123456789"]
ALONE = 0.75  # share of the steps in which each recording is one digit: transcripts of one token are learnt soonest
BANDS, WINDOW = 32, 320  # of the first convolution: mel bands of 25 ms, as filters of four phases each
MODEL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "pad_token_id": BLANK, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 512, "feat_extract_norm": "group", "do_stable_layer_norm": True,
    "conv_dim": (4 * BANDS, 128, 128), "conv_kernel": (WINDOW, 3, 3), "conv_stride": (160, 2, 2),
    "conv_bias": True, "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 8,
    "ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "layerdrop": 0.0, "apply_spec_augment": False,
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
        self.digits, self.speakers, self.steps, self.rows, self.seed = digits, speakers, steps, rows, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, place: Any) -> Any:
        random = np.random.default_rng([self.seed, place])
        most = 1 if place < ALONE * self.steps else 2
        pairs = [self._sequence(random, most) for _ in range(self.rows)]
        return batch_of([samples for samples, _ in pairs], [text for _, text in pairs])

    def _sequence(self, random: np.random.Generator, most: int) -> tuple[np.ndarray, str]:
        files = self.digits.files[self.speakers[int(random.integers(len(self.speakers)))]]
        chosen = [files[random.integers(len(files))] for _ in range(random.integers(1, most + 1))]
        parts = [np.zeros(int(random.uniform(0.0, 0.15) * RATE), np.float32)]
        speed = math.exp(random.uniform(-0.25, 0.25))
        for path, _ in chosen:
            samples = self.digits.samples[path]
            places = np.arange(0, len(samples) - 1, speed * math.exp(random.uniform(-0.06, 0.06)))
            spoken = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
            parts += [spoken, np.zeros(int(random.uniform(0.02, 0.25) * RATE), np.float32)]
        heard = in_a_room(np.concatenate(parts), random)
        return heard, " ".join(str(digit) for _, digit in chosen)


def in_a_room(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another microphone and another noise: a random smooth filter of ± 10 dB, and noise 10 to 50 dB below the voice."""
    size = -(-len(samples) // 2048) * 2048  # a length that is quick to transform
    spectrum = np.fft.rfft(samples, size)
    knots = random.uniform(-10, 10, 8) / 20
    spectrum *= 10 ** np.interp(np.linspace(0, 7, len(spectrum)), np.arange(8), knots)
    noise = random.standard_normal((2, len(spectrum))) * np.linspace(1e-3, 1, len(spectrum)) ** -random.uniform(0, 0.5)
    louder = np.linalg.norm(spectrum) / np.linalg.norm(noise) * 10 ** (-random.uniform(10, 50) / 20)
    heard = np.fft.irfft(spectrum + louder * (noise[0] + 1j * noise[1]), size)
    return heard[: len(samples)].astype(np.float32)


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
    """The model with random weights, but for its ears: it starts from the loudness of mel bands, as other recognisers do.

    The first convolution holds four phases of a windowed wave for each band; what the activation leaves of them is summed
    up by the first channels of the second one: the band's magnitude.
    """
    import transformers

    torch.manual_seed(SEED)
    model: Any = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**MODEL))
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (80.0, 3900.0))
    centres = 700 * (10 ** (np.linspace(low, high, BANDS) / 2595) - 1)
    phases = np.arange(4)[None, :, None] * np.pi / 2
    waves = np.cos(2 * np.pi * centres[:, None, None] * (np.arange(WINDOW) - WINDOW / 2) / RATE + phases)
    bank = torch.from_numpy((waves * np.hanning(WINDOW) / WINDOW * 4).reshape(4 * BANDS, 1, WINDOW).astype(np.float32))
    first, second = (layer.conv for layer in model.wav2vec2.feature_extractor.conv_layers[:2])
    with torch.no_grad():
        first.weight.copy_(bank)
        first.bias.zero_()
        second.weight[: 2 * BANDS].zero_()
        for band in range(BANDS):
            second.weight[band, 4 * band : 4 * band + 4] = 0.25
            second.weight[BANDS + band, 4 * band : 4 * band + 4, 0] = 0.5  # whether it rises or falls
            second.weight[BANDS + band, 4 * band : 4 * band + 4, 2] = -0.5
        second.bias.zero_()
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
    parser.add_argument("--speaker", default="jackson", help="who is held out")
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits = Digits(SHARED / "data/spoken-digits")
    others = [name for name in sorted(digits.files) if name != options.speaker]
    model = new_model()
    module = SamplesWithHead(model)
    settings = Retrain(epochs=1, learning_rate=1e-3, teacher="none", weight_decay=0.01, seed=SEED, precision="fp32")
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
