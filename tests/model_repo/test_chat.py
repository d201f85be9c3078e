"""Chat templates in all the forms in which tokenizers have them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import CheckpointError, RequestError
from shardyard.model_repo.chat import load_chat_template

PLAIN = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [{"role": "user", "content": "Hi <b>"}]
SPECIAL = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}


def _write(folder: Path, template: Any, **more: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **SPECIAL, **more}))
    return folder


def test_a_string(tmp_path: Path) -> None:
    template = load_chat_template(_write(tmp_path, PLAIN))
    assert template.render(TALK) == "<s><|user|>Hi <b></s><|assistant|>"
    assert template.render(TALK, add_generation_prompt=False) == "<s><|user|>Hi <b></s>"


def test_a_list_of_named_ones(tmp_path: Path) -> None:
    _write(tmp_path, [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": PLAIN}])
    assert load_chat_template(tmp_path).render(TALK).startswith("<s><|user|>")
    assert load_chat_template(tmp_path, "tool_use").render(TALK) == "tools"
    with pytest.raises(CheckpointError, match="named 'rag'") as caught:
        load_chat_template(tmp_path, "rag")
    assert "default, tool_use" in caught.value.why


def test_a_file_of_its_own(tmp_path: Path) -> None:
    _write(tmp_path, None)
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert load_chat_template(tmp_path).render(TALK) == "<s><|user|>Hi <b></s><|assistant|>"


def test_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no chat template") as caught:
        load_chat_template(tmp_path)
    assert "shardyard infer" in caught.value.fix


def test_what_templates_may_call(tmp_path: Path) -> None:
    template = load_chat_template(_write(tmp_path, "{{ strftime_now('%Y') }} {{ messages | tojson }}"))
    year = datetime.datetime.now().year
    assert template.render(TALK) == f'{year} [{{"role": "user", "content": "Hi <b>"}}]'


def test_white_space_as_transformers_treats_it(tmp_path: Path) -> None:
    source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n"
    assert load_chat_template(_write(tmp_path, source)).render([{"role": "user", "content": "a"}] * 2) == "a\na\n"


def test_loop_controls(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"
    assert load_chat_template(_write(tmp_path, source)).render([{"content": "a"}, {"content": "b"}]) == "a"


def test_a_template_refuses(tmp_path: Path) -> None:
    template = load_chat_template(_write(tmp_path, "{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(TALK)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_that_fails_or_reaches_out(tmp_path: Path, source: str) -> None:
    template = load_chat_template(_write(tmp_path, source))
    with pytest.raises(RequestError, match="fails on this conversation"):
        template.render(TALK)


@pytest.mark.parametrize(
    ("template", "says"), [("{% for %}", "is not valid"), (7, "neither a text nor a list"), ([7], "neither")]
)
def test_broken(tmp_path: Path, template: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_chat_template(_write(tmp_path, template))
