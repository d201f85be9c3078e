"""Compiles guides, on a thread of its own: the engine's steps go on while a request waits for its grammar.

The parser is llguidance's (https://github.com/guidance-ai/llguidance): Earley's algorithm over a lexer of derivatives
of regular expressions. Its limits on grammar size, lexer states and work per step keep a hostile grammar from holding
up the engine.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from shardyard.errors import ArtifactError, RequestError
from shardyard.runtime.request import Guide, GuideKind

__all__ = ["Grammar", "Grammars"]

#: A JSON text in the sense of TensorRT-LLM's guide ``json``: an object or an array.
_ANY_JSON = '{"type": ["object", "array"]}'


@dataclass(frozen=True)
class Grammar:
    """A compiled guide. ``matcher``: nothing has been fed to it; copy it before use. ``ends``: the parser's end ids."""

    matcher: LLMatcher
    ends: tuple[int, ...]


class Grammars:
    """The compiled guides of one tokenizer; the ``most`` last used are kept.

    ``tokenizer``: a tokenizer.json, or the folder with it; it is read when the first guide comes. ``vocab``: the
    model's tokens.
    """

    def __init__(self, tokenizer: Path, vocab: int, *, most: int = 64) -> None:
        self._path, self._vocab, self._most = tokenizer, vocab, most
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Guide, Future[Grammar]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shardyard-grammars")

    def compile(self, guide: Guide) -> Future[Grammar]:
        """Return the guide's grammar, sooner or later. Called from one thread.

        The future raises RequestError when it is no grammar, ArtifactError when the tokenizer cannot be read.
        """
        found = self._compiled.pop(guide, None) or self._pool.submit(self._make, guide)
        self._compiled[guide] = found
        while len(self._compiled) > self._most:
            self._compiled.popitem(last=False)
        return found

    def close(self) -> None:
        """Drop what is not compiled yet and end the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, guide: Guide) -> Grammar:
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self._path, self._vocab)
        try:
            matcher = LLMatcher(self._tokenizer, _GRAMMARS[guide.kind](guide.text), log_level=0)
        except Exception as error:  # The converter of EBNF raises Exception itself.
            raise _bad_grammar(guide, str(error)) from None
        if not matcher.is_error():
            # The first mask builds most of the lexer; every copy has it then.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _bad_grammar(guide, matcher.get_error())
        return Grammar(matcher, tuple(self._tokenizer.eos_tokens))


def _schema(text: str) -> str:
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is a JSON object, this is {type(schema).__name__}")
    grammar: str = LLMatcher.grammar_from_json_schema(text)
    return grammar


def _regex(text: str) -> str:
    """Read classes such as ``\\d`` as ASCII's, as TensorRT-LLM's parser does: few want the digits of every script."""
    grammar: str = LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='dws')}/")
    return grammar


def _ebnf(text: str) -> str:
    """Take GBNF (``root ::= …``, as TensorRT-LLM has it) or Lark (``start: …``)."""
    grammar: str = LLMatcher.grammar_from_lark(any_to_lark(text))
    return grammar


_GRAMMARS: dict[GuideKind, Callable[[str], str]] = {
    "json": lambda text: _schema(_ANY_JSON),
    "json_schema": _schema,
    "regex": _regex,
    "ebnf_grammar": _ebnf,
}


def _bad_grammar(guide: Guide, why: str) -> RequestError:
    return RequestError(f"the guide cannot be used as {guide.kind}", why=" ".join(why.split())[:500])


def _read_tokenizer(path: Path, vocab: int) -> LLTokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return LLTokenizer(file.read_text(encoding="utf-8"), n_vocab=vocab)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be used for guided answers",
            why=str(error).splitlines()[0],
            fix="give the tokenizer.json of the model",
        ) from None
