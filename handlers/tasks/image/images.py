"""What tasks over images share: an image in, one row of numbers out."""

from pathlib import Path

from handlers.inputs.media.image import Image
from handlers.inputs.media.image_file import ImageFile
from handlers.tasks.rows import RowHandler


class ImageHandler(RowHandler[ImageFile]):
    """A row of numbers for an image."""

    input: Image

    def make_input(self, folder: Path) -> Image:
        return Image.open(folder, self.serving)
