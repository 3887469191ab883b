"""feature-extraction: one pooled vector per text, of length 1 where `normalize` says so (default: the model's own)."""

from handlers.inputs.text import TextInput
from handlers.tasks.encoder import EncoderHandler
from handlers.tasks.vectors import VectorHandler


class FeatureExtractionHandler(VectorHandler[TextInput], EncoderHandler):
    """The vector of a text, or a pair of texts."""
