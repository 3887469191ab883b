"""What tasks over images share: an image in, one row of numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from archiver.data.images import KEYS, PICTURES, ImageExample, read_images
from archiver.errors import UnsupportedModelError
from archiver.tasks.forward import ForwardTask
from handlers.inputs.media.image import Image, Preprocessing

if TYPE_CHECKING:
    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe
    from archiver.tasks.workload import Workload

_PREPROCESSING = "image_preprocessing"


class ImageTask(ForwardTask):
    """A task whose inputs are images.

    Attributes:
        features: whether the vector that a model makes of an image is wanted, not its head's numbers.
    """

    features: ClassVar[bool] = False
    module = "handlers.architecture.outputs.image:ImageModel"
    input_name = "pixel_values"
    columns = KEYS
    data_folders = True
    fallback = PICTURES
    serve_keys = ("max_pixels", "precision", "max_queue")
    packages = ("pillow",)
    unit = "images"
    batches = "batches of 16"
    # An image fills one row, whatever its size was; one more run costs about as much as one image.
    batching: ClassVar[dict[str, Any]] = {"token_budget": 32, "max_rows": 32, "run_cost": 1}

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        return list(
            read_images(
                where,
                recipe.data.columns,
                id2label=facts.id2label or None,
                multi_label=facts.multi_label,
                wants_labels=not self.features,
                max_pixels=recipe.serve.max_pixels,
            )
        )

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        """How images are prepared must be known, and the model must take what comes of it."""
        import torch

        from archiver.models.inputs.image_processor import read_preprocessing
        from archiver.models.load import skeleton
        from handlers.architecture.outputs.image import ImageModel

        try:
            made = read_preprocessing(source.path)
        except UnsupportedModelError as error:
            return list(error.problems)
        pixels = torch.zeros(2, 3, made.height, made.width, device="meta")
        with torch.device("meta"):
            model = skeleton(source, self.auto_class, **self.inspected).eval()
        try:
            with torch.no_grad():
                ImageModel(model, **self.module_settings(facts))(pixels)
        except Exception as error:  # each model says in its own way which images it cannot take
            reason = " ".join(str(error).split())[:200]
            return [
                f"the image processor makes images of {made.height} × {made.width} pixels, and the model fails: {reason}"
            ]
        return []

    def module_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {"features": self.features}

    def values(self, examples: Sequence[ImageExample]) -> list[Any]:
        return [example.file for example in examples]

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        return {"image": self._preprocessing(workload).to_json(), "max_pixels": workload.recipe.serve.max_pixels}

    def make_input(self, workload: Workload, original: bool) -> Image:
        return Image(self._preprocessing(workload), workload.recipe.serve.max_pixels)

    def tracing(self, workload: Workload) -> Tracing:
        import torch

        from archiver.architecture.tracing import MAX_ROWS, Tracing

        made = self._preprocessing(workload)
        example = torch.randn(2, 3, made.height, made.width, generator=torch.Generator().manual_seed(0))
        return Tracing({"pixel_values": example}, {"pixel_values": {0: "rows"}}, {"rows": (1, MAX_ROWS)})

    def starter_limits(self, facts: ModelFacts) -> str:
        return "  max_pixels: 32000000          # of one image as it is sent; larger ones are refused"

    def _preprocessing(self, workload: Workload) -> Preprocessing:
        if _PREPROCESSING not in workload.shared:
            from archiver.models.inputs.image_processor import read_preprocessing

            workload.shared[_PREPROCESSING] = read_preprocessing(workload.source.path)
        made: Preprocessing = workload.shared[_PREPROCESSING]
        return made
