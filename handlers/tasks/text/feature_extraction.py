"""feature-extraction: one pooled vector per text, of length 1 where `normalize` says so (default: the model's own)."""

from collections.abc import Mapping
from typing import ClassVar

from handlers.inputs.text import TextInput
from handlers.protocols.openai import embeddings
from handlers.protocols.request import Parse
from handlers.tasks.encoder import EncoderHandler
from handlers.tasks.vectors import VectorHandler


class FeatureExtractionHandler(VectorHandler[TextInput], EncoderHandler):
    """The vector of a text, or a pair of texts."""

    paths: ClassVar[Mapping[str, Parse]] = {"embeddings": embeddings.parse}
