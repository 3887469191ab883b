"""A conversation to a prompt, by the model's own chat template, in a sandbox and without transformers."""

import datetime
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.errors import BadRequest
from handlers.requirements import require


class ChatTemplate:
    """source: the Jinja text of the model's tokenizer_config.json. tokens: {"bos_token": …, "eos_token": …, …} as text.

    What templates may use is what transformers gives them: loop controls, generation blocks, tojson, raise_exception,
    strftime_now.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        jinja: Any = require("jinja2", "jinja2>=3.1")
        sandbox: Any = importlib.import_module("jinja2.sandbox")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_blocks()]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._errors = (jinja.TemplateError, TypeError, ValueError)
        self._template = environment.from_string(source)
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt that asks for the assistant's next message. BadRequest where the template refuses them.

        Args:
            tools: functions that may be called, in OpenAI's form; None for none.
        """
        try:
            prompt: str = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None if tools is None else [dict(tool) for tool in tools],
                documents=None,
                **self._tokens,
            )
            return prompt
        except BadRequest:
            raise
        except self._errors as error:
            raise BadRequest(f"the model's chat template cannot take these messages: {error}") from error


def _generation_blocks() -> Any:
    """The extension for `{% generation %}`, which marks the assistant's text for training; here it has no effect."""
    ext: Any = importlib.import_module("jinja2.ext")
    nodes: Any = importlib.import_module("jinja2.nodes")

    def parse(self: Any, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    # Not a class statement: its base is known only when jinja2 is loaded.
    return type("GenerationBlocks", (ext.Extension,), {"tags": frozenset({"generation"}), "parse": parse})


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise BadRequest(f"the model's chat template refuses these messages: {message}")
