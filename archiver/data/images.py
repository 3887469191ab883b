"""Images with labels: a list of files (.tsv, .csv, .jsonl, .txt), or a folder with a folder for each label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from archiver.data.examples import SHOWN_PROBLEMS, Label, label_parser, raise_mistakes
from archiver.data.files import BadRow, Columns, Row, read_rows
from archiver.errors import DataError
from handlers.errors import BadRequest
from handlers.inputs.media.image_file import ImageFile, ImageReader

KEYS = ("image", "label")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
PICTURES = "embedded:pictures"  # stands for some pictures that are made here, where a recipe names no validation data
_PICTURES = 32


@dataclass(frozen=True)
class ImageExample:
    """One image. path: as the source names it; digest: SHA-256 of its bytes; label: as in archiver.data.examples."""

    path: str
    file: ImageFile = field(repr=False)
    digest: str
    label: Label = None


def read_images(
    source: Path | str,
    columns: Mapping[str, str | int] | None = None,
    *,
    id2label: Mapping[int, str] | None = None,
    multi_label: bool | None = None,
    wants_labels: bool = True,
    max_pixels: int,
) -> list[ImageExample]:
    """The images of one source, each opened and found whole.

    Args:
        source: a .tsv, .csv, .jsonl or .txt file with the path of an image a row, relative to the file, and its label; or a
            folder that holds a folder of images for each label, or images alone; or PICTURES.
        columns: {"image" | "label": column name (the file has a header) or position (it has none)}; without it: columns
            named image and label, of which only image must exist.
        id2label: the model's labels; a label is one of these names, or an id.
        multi_label: labels are names or ids joined by `|`.
        wants_labels: False where they are not looked at.
        max_pixels: most pixels of one image.
    Raises: DataError that lists every bad row or file (the first 20, then how many more), each with its line or path.
    """
    if source == PICTURES:
        return list(_pictures())
    if isinstance(source, str):
        raise DataError(f"{source}: images are read from files; name a list of images, or a folder of them")
    if source.is_dir():
        rows, name = list(_folder_rows(source)), source.name
    else:
        rows, name = list(read_rows(source, Columns(dict(columns or {}), KEYS))), source.name
    base, reader = source if source.is_dir() else source.parent, ImageReader(max_pixels)
    good = [row for row in rows if isinstance(row, Row)]
    labels = [row.values.get("label") for row in good]
    parse = label_parser("class", id2label, multi_label, labels)
    problems = [(row.line, row.problem) for row in rows if isinstance(row, BadRow)]
    examples = []
    for row in good:
        path, raw = row.values["image"], row.values.get("label")
        try:
            label = parse(raw) if wants_labels and raw is not None else None
        except ValueError as error:
            problems.append((row.line, f"{path}: {error}" if source.is_dir() else str(error)))
            continue
        try:
            examples.append(_example(base, path, label, reader))
        except ValueError as error:
            problems.append((row.line, str(error)))
    if problems:
        _raise(source, name, problems)
    if not examples:
        raise DataError(f"{name} holds no images: it needs at least one")
    return examples


def _example(base: Path, path: Any, label: Label, reader: ImageReader) -> ImageExample:
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"image must be the path of a file; found {type(path).__name__} {path!r}"[:120])
    try:
        body = (base / path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; name an image, relative to the list") from error
    try:
        file = reader.file(body, path)
        reader.read(file)
    except BadRequest as error:
        raise ValueError(str(error)) from error
    return ImageExample(path, file, hashlib.sha256(body).hexdigest(), label)


def _folder_rows(folder: Path) -> Iterator[Row | BadRow]:
    """Files by path, lines counted from 1; of a folder without folders all its images, without labels."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    line = 0
    for place in below or [folder]:
        for path in sorted(place.rglob("*") if below else place.iterdir()):
            if not path.is_file() or path.name.startswith("."):
                continue
            line += 1
            shown = path.relative_to(folder).as_posix()
            if path.suffix.lower() not in SUFFIXES:
                yield BadRow(line, f"{shown} has the suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
            else:
                yield Row(line, {"image": shown, **({"label": place.name} if below else {})})
    beside = [path.name for path in folder.iterdir() if below and path.is_file() and path.suffix.lower() in SUFFIXES]
    if beside:
        yield BadRow(
            0, f"{', '.join(sorted(beside)[:3])} lies beside the labels' folders: put each image into one of them"
        )


def _raise(source: Path, name: str, problems: list[tuple[int, str]]) -> None:
    """As of any list; of a folder, where lines say nothing, with the paths that the problems name themselves."""
    if not source.is_dir():
        raise_mistakes(name, problems)
    shown = [problem for _, problem in sorted(problems)][:SHOWN_PROBLEMS]
    more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    mistakes = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}"
    raise DataError(f"the folder {name} has {mistakes}: correct or remove the files", shown + more)


def _pictures() -> Iterator[ImageExample]:
    """Gradients with stripes and noise, each unlike the others: for speed and stored examples."""
    from PIL import Image

    random = np.random.default_rng(0)
    for index in range(_PICTURES):
        height, width = (int(side) for side in random.integers(100, 300, 2))
        down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
        slopes, shifts, waves = random.normal(0, 1, (3, 3))
        values = (
            0.5
            + 0.4 * np.sin(6 * (slopes * down + shifts * across) + waves)
            + random.normal(0, 0.05, (height, width, 3))
        )
        file = BytesIO()
        Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8)).save(file, "png")
        body, name = file.getvalue(), f"picture {index}"
        yield ImageExample(name, ImageFile(body, width, height, name), hashlib.sha256(body).hexdigest())
