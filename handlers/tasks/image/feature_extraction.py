"""image-feature-extraction: one vector per image, as the model gives it unless `normalize` asks for length 1."""

from handlers.inputs.media.image_file import ImageFile
from handlers.tasks.image.images import ImageHandler
from handlers.tasks.vectors import VectorHandler


class ImageFeatureExtractionHandler(VectorHandler[ImageFile], ImageHandler):
    """The vector of an image."""
