"""What the encoders' tasks share: texts in, one row of numbers per input out."""

from pathlib import Path

from handlers.inputs.text import Text, TextInput
from handlers.tasks.rows import RowHandler


class EncoderHandler(RowHandler[TextInput]):
    """A row of numbers for a text, or a pair of texts."""

    input: Text

    def make_input(self, folder: Path) -> Text:
        return Text.open(folder, self.serving)
