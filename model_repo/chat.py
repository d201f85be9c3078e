"""Renders a conversation with the tokenizer's own chat template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shardyard.errors import CheckpointError, RequestError
from shardyard.model_repo.models.tokenizer import read_json
from shardyard.model_repo.special_ids import token_text

__all__ = ["ChatTemplate", "Message", "load_chat_template"]

#: ``role`` (system, user, assistant) and ``content``.
Message = Mapping[str, str]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ChatTemplate:
    """A template in a sandbox: it can neither change what it is given nor reach outside."""

    def __init__(self, source: str, special: Mapping[str, str], origin: str) -> None:
        self._special = dict(special)
        self._origin = origin
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template in {origin} is not valid", why=str(error)) from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt's text, which has its special tokens in it.

        Raises:
            RequestError: the template refuses the conversation, or fails on it.
        """
        variables: dict[str, Any] = {**self._special, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(messages=[dict(message) for message in messages], **variables)
        except RequestError:
            raise
        except Exception as error:  # A template runs the model maker's code: anything can come of it.
            raise RequestError(
                f"the chat template in {self._origin} fails on this conversation",
                why=f"{type(error).__name__}: {error}",
                fix="check the roles and their order",
            ) from None


def load_chat_template(folder: Path, name: str = "default") -> ChatTemplate:
    """Read the chat template of a tokenizer: tokenizer_config.json's, else chat_template.jinja's.

    A tokenizer with several templates names them; ``name`` picks one.

    Raises:
        CheckpointError: there is none, or it is not valid.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    source, origin = _pick(config.get("chat_template"), name, path), path
    if source is None:
        origin = folder / "chat_template.jinja"
        source = origin.read_text(encoding="utf-8") if origin.is_file() else None
    if source is None:
        raise CheckpointError(
            f"{folder} has no chat template",
            why="neither tokenizer_config.json nor chat_template.jinja has one: it may be a base model",
            fix="use: shardyard infer, or set model.tokenizer to the folder of a chat model's tokenizer",
        )
    texts = {key: token_text(config.get(key)) for key in _SPECIAL}
    return ChatTemplate(source, {key: text for key, text in texts.items() if text is not None}, str(origin))


def _pick(template: object, name: str, path: Path) -> str | None:
    if template is None or isinstance(template, str):
        return template
    try:
        named = {entry["name"]: entry["template"] for entry in template}  # type: ignore[attr-defined]
        return str(named[name])
    except KeyError:
        raise CheckpointError(
            f"{path} has no chat template named {name!r}", why=f"it has: {', '.join(sorted(named))}"
        ) from None
    except TypeError:
        raise CheckpointError(
            f"{path}: chat_template is neither a text nor a list", why="each entry of a list has name and template"
        ) from None


def _to_json(value: object, indent: int | None = None) -> str:
    """The filter of transformers: plain JSON, where jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise RequestError(f"the chat template refuses this conversation: {message}")
