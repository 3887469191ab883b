"""A language model beside the original, over as many windows of the validation text as the verdicts need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from archiver.data.text.windows import LEAST_WINDOWS
from archiver.evaluation.comparison import (
    Comparison,
    changes,
    confidence_of_a_look,
    decided,
    looks_of,
    spread_order,
)
from archiver.evaluation.metrics.perplexity import Predictions, joined, language_metrics
from archiver.spec import GateSpec

Predict = Callable[[np.ndarray], Predictions]


class OriginalAnswers:
    """What the original predicts in its windows, each of them predicted once, when it is first asked for.

    Args:
        predict: [windows, length] → Predictions, by the original.
        windows: [windows, length] int64.
    """

    def __init__(self, predict: Predict, windows: np.ndarray) -> None:
        self._predict, self.windows = predict, windows
        self._nll = np.full(len(windows), np.nan)
        self._best = np.zeros((windows.shape[0], windows.shape[1] - 1), np.int64)

    def at(self, places: np.ndarray) -> Predictions:
        """The predictions for the windows at some places, in their order."""
        missing = places[np.isnan(self._nll[places])]
        if len(missing):
            found = self._predict(self.windows[missing])
            self._nll[missing], self._best[missing] = found.nll, found.best
        return Predictions(self._nll[places], self._best[places])

    def every(self) -> Predictions:
        """Those for all windows."""
        return self.at(np.arange(len(self.windows)))


def compare_windows(
    predict: Predict, windows: np.ndarray, original: OriginalAnswers, gates: Sequence[GateSpec], *, whole: bool
) -> Comparison:
    """Measure a model on the original's own windows: blocks of them, spread over the text, until the verdicts are sure.

    Args:
        predict: [windows, length] → Predictions, by the model; likeliest tokens in the original's ids.
        windows: [windows, length] int64, the original's in the model's ids.
        gates: what is to be decided, see archiver.evaluation.comparison.decided.
        whole: all windows are wanted.
    """
    count = len(original.windows)
    order = np.arange(count) if whole else spread_order(count)
    looks = [count] if whole else looks_of(count, LEAST_WINDOWS)
    confidence = confidence_of_a_look(len(looks))
    parts: list[Predictions] = []
    done = 0
    for end in looks:
        reference = original.at(order[:end])
        parts.append(predict(windows[order[done:end]]))
        done = end
        found = joined(parts)
        if end == count:
            intervals = {}  # nothing is a sample any more
            break
        intervals = changes(found, reference, count, confidence)
        if decided(gates, intervals):
            break
    return Comparison(
        language_metrics(found, reference.best),
        language_metrics(reference, reference.best),
        {"examples": done, **({"of": count} if done < count else {}), "context": windows.shape[1]},
        intervals,
    )


def compare_whole(found: Predictions, reread: Predictions, original: Predictions) -> Comparison:
    """Measure a model whose tokens cut the text into other windows than the original's: no window is paired, all count.

    Args:
        found: by the model, in its windows. reread: by the original, in the model's windows.
        original: by the original, in its own.
    """
    return Comparison(
        language_metrics(found, reread.best),
        language_metrics(original, original.best),
        {"examples": len(original), "context": original.best.shape[1] + 1},
    )
