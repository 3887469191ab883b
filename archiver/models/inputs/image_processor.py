"""How a model's images are prepared, as serving needs it: found out from transformers' own image processor, by trials.

No list of processors decides what is taken. The processor that the model directory names is made (its PIL backend), and
asked what it makes of a black, a white and some random images; taken is whatever gives the same values with what
`handlers.inputs.media.image.Preprocessing` can do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archiver.errors import UnsupportedModelError
from archiver.models.config import quiet, reason
from archiver.models.files import read_json
from handlers.inputs.media.image import Preprocessing

TOLERANCE = 1e-4  # of a value that the model is given
_OWN, _JOINT = "preprocessor_config.json", "processor_config.json"
_TRIALS = ((97, 61), (61, 97), (150, 31), (13, 9), (411, 307))  # (width, height)


def read_preprocessing(path: Path) -> Preprocessing:
    """The preparation of images that a model directory asks for.

    Raises: UnsupportedModelError where it names no processor, or one whose values cannot be had here.
    """
    settings = _settings(path)
    processor = _processor(path, settings)
    try:
        return _found(processor)
    except _Unlike as error:
        raise _refused(path, f"{type(processor).__name__} {error}") from None
    except Exception as error:  # each processor refuses settings its own way
        raise _refused(path, f"{type(processor).__name__} fails on an image: {reason(error)}") from error


def _settings(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    joint = read_json(path / _JOINT, problems).get("image_processor") if (path / _JOINT).is_file() else None
    own = read_json(path / _OWN, problems) if (path / _OWN).is_file() else None
    found = joint if isinstance(joint, dict) else own
    if problems or found is None:
        raise _refused(path, *problems or [f"it has no {_OWN}, which says how images are prepared"])
    return found


def _processor(path: Path, settings: Mapping[str, Any]) -> Any:
    # Imported by its name: as an attribute of its package it asks for torchvision, which the PIL backend does not need.
    auto: Any = importlib.import_module("transformers.models.auto.image_processing_auto")
    named = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if not name:
        kind = str(read_json(path / "config.json", []).get("model_type"))
        name = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(kind, {}).get("pil", "")
    made: Any = auto.get_image_processor_class_from_name(f"{name.removesuffix('Pil')}Pil")
    if made is None:
        raise _refused(
            path, f"its image processor is {named or 'not named'}, and transformers has no PIL backend of it"
        )
    try:
        with quiet():
            return made.from_dict(dict(settings))
    except Exception as error:  # as above
        raise _refused(path, f"{made.__name__} cannot be made from {_OWN}: {reason(error)}") from error


def _found(processor: Any) -> Preprocessing:
    """Raises: _Unlike."""
    from PIL import Image

    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (high, wide, 3), np.uint8)) for wide, high in _TRIALS]
    wanted = [_values(processor, image) for image in images]
    if len(shapes := {found.shape[1:] for found in wanted}) > 1:
        shown = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise _Unlike(
            f"makes images of different sizes ({shown}); one size for all is expected: set `size` to a height and a width, "
            "or do_center_crop and crop_size"
        )
    height, width = wanted[0].shape[1:]
    # Black and white show offset and factor of each channel, in the middle of an image so large that nothing is put around.
    black, white = (
        _values(processor, Image.new("RGB", (2 * width, 2 * height), (level,) * 3))[:, height // 2, width // 2]
        for level in (0, 255)
    )
    factor, offset = (tuple(map(float, found)) for found in ((white - black) / 255, black))
    best = np.inf
    for draft in _drafts(processor, height, width):
        tried = replace(draft, factor=factor, offset=offset)
        made = [tried.values([tried.pixels(image)], 1)[0] for image in images]
        apart = max(float(np.abs(a - b).max()) for a, b in zip(made, wanted, strict=True))
        if apart <= TOLERANCE:
            return tried
        best = min(best, apart)
    raise _Unlike(
        "prepares images in a way that serving does not know: by its size, crop_size, crop_pct, resample, mean and "
        f"deviation alone, values lie {best:.3g} from its own; at most {TOLERANCE:g} is allowed"
    )


def _drafts(processor: Any, height: int, width: int) -> Iterator[Preprocessing]:
    """What the processor's settings may mean, the usual first: transformers' base, ConvNeXt, PoolFormer, LeViT."""
    size, share = dict(processor.size or {}), getattr(processor, "crop_pct", None) or 1.0
    short, exact = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    ways: list[tuple[int | None, tuple[int, int] | None]] = []  # (shortest_edge, resize_to)
    if short:
        ways += [(int(short), None), (int(short / share), None), (None, (int(short), int(short)))]
        ways += [(int(256 / 224 * short), None)]
    if exact[0] and exact[1]:
        ways += [(None, (int(exact[0]), int(exact[1]))), (int(exact[0] / share), None)]
    resample = int(processor.resample if processor.resample is not None else 2)
    for edge, to in [*dict.fromkeys(ways), (None, None)]:
        for reverse in (False, True):
            yield Preprocessing(height, width, edge, to, resample, (1.0,) * 3, (0.0,) * 3, reverse)


def _values(processor: Any, image: Any) -> np.ndarray:
    """[3, height, width] that the processor makes of an RGB image. Raises: _Unlike."""
    made = processor(image, return_tensors="np")
    if set(made) != {"pixel_values"}:
        raise _Unlike(f"gives {', '.join(sorted(made))}; one that gives pixel_values alone is expected")
    found = np.asarray(made["pixel_values"])
    if found.ndim != 4 or found.shape[1] != 3:
        raise _Unlike(f"makes an array of shape {list(found.shape)} of an image; [1, 3, height, width] is expected")
    values: np.ndarray = found[0].astype(np.float32)
    return values


class _Unlike(Exception):
    """What a processor does that serving cannot: its message goes on behind the processor's name."""


def _refused(path: Path, *problems: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model directory {path.absolute().name!r} cannot be used:", list(problems))
