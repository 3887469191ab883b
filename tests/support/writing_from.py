"""A text2text-generation handler over a tiny T5 on torch, and what its archive would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archiver.models.inputs.generation import generation_rules
from handlers.inputs.text import Encoder, Text
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq
from handlers.tasks.text.seq2seq import Seq2SeqHandler

MOST = 20


def seq2seq_handler(model: Any, tokenizer_json: bytes, **serving: Any) -> Seq2SeqHandler:
    """Opened on a live model."""
    handler: Any = type("Here", (Seq2SeqHandler,), {"runtime": lambda *_: TorchSeq2Seq.of_model(model)})()
    handler.serving = {
        "session": {},
        "max_running": 8,
        "max_inputs": 4,
        "max_length": 24,
        "max_target": MOST,
        "max_queue": 16,
        "deadline_s": 60.0,
        "answer": "generated_text",
        "generation": generation_rules(model, MOST) | {"max_new_tokens": 8},
        "languages": {},
        "tolerance": 0.001,
        "example_tokens": 5,
    } | serving
    handler.input = Text(Encoder(tokenizer_json, max_length=handler.serving["max_length"], pad_id=1))
    handler.load(Path(), 1)
    made: Seq2SeqHandler = handler
    return made
