"""image-classification: one list of labels with scores per image, the five best unless `top_k` says otherwise."""

from typing import ClassVar

from handlers.inputs.checks import Parameter
from handlers.inputs.media.image_file import ImageFile
from handlers.tasks.classification import ACTIVATIONS, ClassificationHandler
from handlers.tasks.image.images import ImageHandler


class ImageClassificationHandler(ClassificationHandler[ImageFile], ImageHandler):
    """Labels of an image; parameters and their defaults are those of transformers' pipeline."""

    most: ClassVar[int] = 5
    parameters: ClassVar[dict[str, Parameter]] = {
        **ClassificationHandler.parameters,
        "function_to_apply": Parameter(lambda value: value in (*ACTIVATIONS,), ", ".join(ACTIVATIONS)),
    }
