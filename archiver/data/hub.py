"""Rows of a Hugging Face hub data set, read with the optional package `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from archiver.data.files import BadRow, Columns, Row, pick_named
from archiver.errors import DataError

HUB_PREFIX = "hub://"


def read_hub_rows(source: str, columns: Columns) -> Iterator[Row | BadRow]:
    """The rows of "hub://name[/config]:split", lines counted from 1; `columns` by name.

    raises DataError when `datasets` is not installed, or the data set cannot be had
    """
    if any(isinstance(column, int) for column in columns.names.values()):
        raise DataError(f"{source}: a hub data set has names, not positions: give data.columns by name")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"{source} needs the package datasets: pip install datasets") from error
    records: Iterable[Mapping[str, Any]] = _load(datasets, source)
    return (pick_named(line, record, columns) for line, record in enumerate(records, start=1))


def _load(datasets: Any, source: str) -> Any:
    path, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    parts = path.split("/")
    # "a/b" is either organisation/name or name/config: the hub knows which.
    readings: list[tuple[str, str | None]] = [(path, None)]
    if len(parts) == 2:
        readings.append((parts[0], parts[1]))
    elif len(parts) == 3:
        readings = [(f"{parts[0]}/{parts[1]}", parts[2])]
    reason: Exception | None = None
    for name, config in readings:
        try:
            return datasets.load_dataset(name, config, split=split)
        except FileNotFoundError as error:
            reason = error
        except (OSError, ValueError, RuntimeError) as error:
            reason = error
            break
    raise DataError(f"{source} cannot be read: {reason}; check its name, config and split, and the network")
