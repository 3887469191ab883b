"""Conversations by a model's own template: as transformers renders them, and in a sandbox."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from archiver.errors import UnsupportedModelError
from archiver.models.inputs.chat_template import read_chat_template
from handlers.errors import BadRequest
from handlers.generation.chat import ChatTemplate

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""
# What else templates use: filters, loop controls, tools that are none, a block that marks what the assistant said.
MANY = """\
{% if tools %}tools{% endif %}{% if documents is defined and documents %}documents{% endif %}
{{ messages | tojson }} {{ {'b': 1, 'a': '<é>'} | tojson(separators=(',', ':'), sort_keys=true) }}
{{ {'a': [1]} | tojson(indent=2) }} {{ {'a': 'é'} | tojson(ensure_ascii=true) }}
{% for message in messages %}{% if loop.index0 > 1 %}{% break %}{% endif %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{%- generation %}{{ message.content | upper }}{% endgeneration %}
{% endfor %}{{ pad_token }}{{ no_such_token }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}
"""
SYSTEM = {"role": "system", "content": " be brief "}
TALK = [{"role": "user", "content": "Hi <b> é 😀"}, {"role": "assistant", "content": " yes "}]
ASK = {"role": "user", "content": "and\nnow?"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def reference(tiny_model) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model("llama", "text-generation"))


@pytest.mark.parametrize("messages", [[ASK], [SYSTEM, ASK], [*TALK, ASK], [SYSTEM, *TALK, ASK]], ids=len)
@pytest.mark.parametrize("source", [CHATML, LLAMA2, MANY], ids=["chatml", "llama2", "many"])
def test_as_transformers_renders_it(reference, source, messages) -> None:
    wanted = reference.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, TOKENS).render(messages) == wanted
    assert "now?" in wanted.lower() or len(messages) > 2


def test_it_asks_for_the_assistant_and_knows_the_date() -> None:
    assert ChatTemplate(CHATML, {}).render([ASK]).endswith("now?<|im_end|>\n<|im_start|>assistant\n")
    year = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([ASK])
    assert year in {str(datetime.datetime.now().year), str(datetime.datetime.now().year - 1)}


TRICKS = [
    '{{ "".__class__.__mro__[1].__subclasses__() }}',
    "{{ messages.__class__ }}{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ ''['__class__']['__base__'] }}",
    "{% set x = messages.append({}) %}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
]


@pytest.mark.parametrize("source", TRICKS)
def test_a_template_gets_at_nothing_else(source) -> None:
    messages = [dict(ASK)]
    with pytest.raises(BadRequest, match="the model's chat template cannot take these messages: .*unsafe"):
        ChatTemplate(source, {}).render(messages)
    assert messages == [ASK]


def test_messages_are_not_templates() -> None:
    evil = [{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}]
    assert "{{ 7 * 7 }}{% raw %}" in ChatTemplate(CHATML, {}).render(evil)


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (LLAMA2, [ASK, ASK], "the model's chat template refuses these messages: Conversation roles must alternate"),
        ("{{ messages[0].content + 1 }}", [ASK], "the model's chat template cannot take these messages: can only con"),
        ("{{ messages[3].content }}", [ASK], "the model's chat template cannot take these messages: .* has no element"),
        ("{{ messages | no_such }}", None, "No filter named 'no_such'"),
    ],
)
def test_what_a_template_refuses(source, messages, message) -> None:
    if messages is None:
        with pytest.raises(Exception, match=message):
            ChatTemplate(source, {})
        return
    with pytest.raises(BadRequest, match=message) as refused:
        ChatTemplate(source, TOKENS).render(messages)
    assert refused.value.code == 400


# ---- where a model keeps it -------------------------------------------------------------------------------------------


def folder_with(folder: Path, config: Any = None, jinja: str | None = None) -> Path:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return folder


@pytest.mark.parametrize(
    ("config", "jinja", "template"),
    [
        (None, None, None),
        ({"bos_token": "<s>"}, None, None),
        ({"chat_template": None}, None, None),
        ({"chat_template": "of the config"}, None, "of the config"),
        ({"chat_template": "of the config"}, "of the file é", "of the file é"),
        (None, "of the file", "of the file"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, None, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, "x"]}, None, None),
        ({"chat_template": []}, None, None),
    ],
)
def test_where_the_template_is_found(tmp_path, config, jinja, template) -> None:
    found = read_chat_template(folder_with(tmp_path, config, jinja))
    assert (found and found["template"]) == template


def test_its_tokens_are_texts_or_objects(tmp_path) -> None:
    config = {
        "chat_template": "x",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False, "__type": "AddedToken"},
        "pad_token": None,
        "unk_token": {"id": 3},
        "mask_token": "<mask>",
    }
    found = read_chat_template(folder_with(tmp_path, config))
    assert found == {"template": "x", "tokens": {"bos_token": "<s>", "eos_token": "</s>"}}


@pytest.mark.parametrize("template", [{"a": "b"}, 5, "x" * 200_001, [{"name": "default", "template": 5}]], ids=str)
def test_what_is_no_template(tmp_path, template) -> None:
    with pytest.raises(UnsupportedModelError, match="its chat template is no text of at most 200000 characters"):
        read_chat_template(folder_with(tmp_path, {"chat_template": template}))


def test_as_a_tokenizer_saves_it(tiny_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama", "text-generation"))
    tokenizer.chat_template = LLAMA2
    tokenizer.save_pretrained(tmp_path)
    found = read_chat_template(tmp_path)
    assert found is not None
    wanted = tokenizer.apply_chat_template([SYSTEM, ASK], tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(found["template"], found["tokens"]).render([SYSTEM, ASK]) == wanted
