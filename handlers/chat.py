"""A conversation to a prompt, by the model's own chat template, in a sandbox and without transformers."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.runtime import require


class ChatTemplate:
    """source: the Jinja text of the model's tokenizer_config.json. tokens: {"bos_token": …, "eos_token": …, …} as text.

    What templates may use is what transformers gives them: loop controls, tojson, raise_exception, strftime_now.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        jinja: Any = require("jinja2", "jinja2>=3.1")
        sandbox: Any = require("jinja2.sandbox", "jinja2>=3.1")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._errors = (jinja.TemplateError, TypeError, ValueError)
        self._template = environment.from_string(source)
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that asks for the assistant's next message. BadRequest where the template refuses them."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except BadRequest:
            raise
        except self._errors as error:
            raise BadRequest(f"the model's chat template cannot take these messages: {error}") from error


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=bool(more.get("sort_keys")))


def _refuse(message: str) -> None:
    raise BadRequest(f"the model's chat template refuses these messages: {message}")
