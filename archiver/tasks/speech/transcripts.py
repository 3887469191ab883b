"""What recognition declares alike, whichever kind of model hears: its metrics, its columns, and the head of its recipe."""

from __future__ import annotations

from archiver.tasks.base import Metric

METRICS = {
    "wer": Metric(higher_is_better=False, needs=("transcript",)),
    "cer": Metric(higher_is_better=False, needs=("transcript",)),
    "word_accuracy": Metric(needs=("transcript",)),
    "agreement": Metric(),  # share of recordings with the original's words
}
HEADLINES = ("word_accuracy", "agreement")
FINE = ("cer", "agreement")
COLUMNS = ("audio", "transcript")

_STARTER = """
# Recordings that the gate and the stored examples come from: without them nothing can be built. Name a list here.
data:
  # train: train.tsv            # {train}
  validation: validation.tsv    # .tsv, .csv or .jsonl; the sound files' paths are relative to the list
  columns: {{audio: 0, transcript: 1}}      # positions where the list has no header, else names

compress:
  - quantize: {{method: weight-only, bits: 8}}
  # - quantize: {{method: static-int8}}  # {static}

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {{word_accuracy: 0.01}}  # 0.01 is one word in a hundred; max_increase: {{wer: 0.1}} is relative
#   min_speedup: 2.0            # against {against}
#   max_size_mb: 150            # of the archive
"""


def starter(*, train: str, static: str, against: str) -> str:
    """The body of a starter recipe.

    Args:
        train: what data.train is for. static: what static-int8 does. against: what speed is compared with.
    """
    return _STARTER.format(train=train, static=static, against=against)
