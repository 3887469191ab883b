"""text-classification: one list of labels with scores per text, the best label alone unless `top_k` asks for more."""

from typing import ClassVar

from handlers.inputs.text import TextInput
from handlers.tasks.classification import ACTIVATIONS, ClassificationHandler, sigmoid, softmax
from handlers.tasks.encoder import EncoderHandler

__all__ = ["ACTIVATIONS", "TextClassificationHandler", "sigmoid", "softmax"]


class TextClassificationHandler(ClassificationHandler[TextInput], EncoderHandler):
    """Labels of a text, or a pair of texts."""

    hub_nests: ClassVar[bool] = True
