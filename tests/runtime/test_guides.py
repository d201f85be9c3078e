"""Grammars and the masks they give: whatever the logits are, the text is one of the grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shardyard.errors import ArtifactError, RequestError
from shardyard.runtime.guides.checking import check_guide
from shardyard.runtime.guides.grammars import Grammars
from shardyard.runtime.guides.guided_answer import GuidedAnswer
from shardyard.runtime.request import Guide

VOCAB, ENDS = 515, (1, 2)
#: Random logits would hardly ever close a string or a list; from some length on these are likelier.
CLOSING = ('"', "}", "]", "0")
EXPRESSIONS = ["[a-c]{3}", r"\d{1,3}(\.\d)?", r"\w\s\w", "(yes|no)!*", "é+x", "a/b|c\nd", "[^a]b"]


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("--family", "llama")


@pytest.fixture(scope="module")
def grammars(folder: Path) -> Iterator[Grammars]:
    made = Grammars(folder, VOCAB, most=3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def write(folder: Path, grammars: Grammars) -> Callable[..., str]:
    """Return a text that random logits make under a guide; it ends by an end id, or where nothing can be added."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    closing = [tokenizer.token_to_id(text) for text in CLOSING]

    def run(guide: Guide, seed: int, most: int = 400) -> str:
        answer, logits = GuidedAnswer(grammars.compile(guide).result(20), ENDS), np.random.default_rng(seed)
        tokens: list[int] = []
        while not answer.complete:
            row = logits.normal(size=VOCAB).astype(np.float32)
            row[[*closing, *ENDS]] += len(tokens) / 20
            best = int(np.where(answer.allowed(VOCAB), row, -np.inf).argmax())
            if best in ENDS:
                break
            tokens.append(best)
            answer.follow(tokens)
            assert len(tokens) < most, tokenizer.decode(tokens)
        return tokenizer.decode(tokens, skip_special_tokens=False)

    return run


def schemas() -> st.SearchStrategy[Any]:
    """Schemas whose every text is short."""
    leaves = st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": -5, "maximum": 1200},
            {"type": "string", "maxLength": 6},
            {"type": "string", "pattern": "^[a-f]{2,4}$"},
            {"enum": ["red", 7, None, [1, 2]]},
            {"const": {"fixed": True}},
        ]
    )

    def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        names = st.lists(st.sampled_from("abcdé "), unique=True, max_size=3)
        objects = names.flatmap(
            lambda keys: st.fixed_dictionaries(
                {
                    "type": st.just("object"),
                    "properties": st.fixed_dictionaries(dict.fromkeys(keys, inner)),
                    "required": st.just(keys[:2]),
                    "additionalProperties": st.just(False),
                }
            )
        )
        arrays = st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner, "minItems": st.integers(0, 2), "maxItems": st.just(2)}
        )
        return objects | arrays | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)})

    return st.recursive(leaves, wider, max_leaves=5)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of the schema: of the few keywords that ``schemas`` uses, read independently."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    return KINDS[schema["type"]](value, schema)


def is_object(value: Any, schema: dict[str, Any]) -> bool:
    inner = schema["properties"]
    known = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(inner)
    return known and all(fits(each, inner[key]) for key, each in value.items())


def is_array(value: Any, schema: dict[str, Any]) -> bool:
    sized = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
    return sized and all(fits(each, schema["items"]) for each in value)


def is_string(value: Any, schema: dict[str, Any]) -> bool:
    short = isinstance(value, str) and len(value) <= schema.get("maxLength", 9)
    return short and bool(re.search(schema.get("pattern", ""), value))


KINDS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "object": is_object,
    "array": is_array,
    "string": is_string,
    "integer": lambda value, schema: type(value) is int and schema["minimum"] <= value <= schema["maximum"],
    "boolean": lambda value, schema: isinstance(value, bool),
    "null": lambda value, schema: value is None,
}


@settings(max_examples=60, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_a_schema_is_kept_whatever_the_logits_are(write: Callable[..., str], schema: dict[str, Any], seed: int) -> None:
    text = write(Guide("json_schema", json.dumps(schema)), seed)
    assert fits(json.loads(text), schema), text


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_json_parses(write: Callable[..., str], seed: int) -> None:
    assert isinstance(json.loads(write(Guide("json"), seed)), dict | list)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), expression=st.sampled_from(EXPRESSIONS))
def test_a_regular_expression_matches_the_whole(write: Callable[..., str], expression: str, seed: int) -> None:
    assert re.fullmatch(expression, write(Guide("regex", expression), seed), re.ASCII)


def expressions() -> st.SearchStrategy[str]:
    """Regular expressions whose every text is short."""
    leaves = st.sampled_from(["a", "é", r"\d", "[b-f]", "[^a-z]", r"\.", " ", r"\w", "[xyz]{2}"])
    times = st.sampled_from(["?", "{2}", "{0,3}", "{1,2}"])

    def wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(inner, min_size=1, max_size=3)
        repeated = st.tuples(inner, times).map(lambda pair: f"({pair[0]}){pair[1]}")
        return several.map("".join) | several.map(lambda each: f"({'|'.join(each)})") | repeated

    return st.recursive(leaves, wider, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(expression=expressions(), seed=st.integers(0, 2**32))
def test_any_regular_expression_matches_the_whole(write: Callable[..., str], expression: str, seed: int) -> None:
    assume(expression.strip())
    assert re.fullmatch(expression, write(Guide("regex", expression), seed), re.ASCII)


@pytest.mark.parametrize(
    "text",
    ['root ::= "x" more\nmore ::= "" | "(" root ")"\n', 'start: "x" more\nmore: "" | "(" start ")"\n'],
    ids=["gbnf", "lark"],
)
def test_an_ebnf_grammar_is_kept(write: Callable[..., str], text: str) -> None:
    for seed in range(5):
        inner = write(Guide("ebnf_grammar", text), seed)
        depth = inner.count("(")
        assert inner == "x(" * depth + "x" + ")" * depth


def test_ends_are_allowed_exactly_where_the_grammar_accepts(folder: Path, grammars: Grammars) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answer = GuidedAnswer(grammars.compile(Guide("regex", "ab?")).result(20), ENDS)
    tokens: list[int] = []
    for text, ends in (("a", False), ("b", True)):
        assert set(answer.allowed(VOCAB)[list(ENDS)]) == {ends}
        assert not answer.allowed(VOCAB)[0]  # The tokenizer's own first special token is no end of this request.
        tokens.append(tokenizer.token_to_id(text))
        answer.follow(tokens)
    assert answer.complete
    with pytest.raises(ValueError, match="cannot go on"):
        answer.follow([*tokens, 70])


def test_grammars_are_kept_up_to_a_limit(grammars: Grammars) -> None:
    guides = [Guide("regex", f"{i}+") for i in range(4)]
    first = [grammars.compile(guide) for guide in guides[:3]]
    assert grammars.compile(guides[0]) is first[0]
    grammars.compile(guides[3])  # The least recently used one, number 1, goes.
    assert grammars.compile(guides[0]) is first[0]
    assert grammars.compile(guides[1]) is not first[1]


@pytest.mark.parametrize(
    ("guide", "hint"),
    [
        (Guide("json_schema", "{bad"), "double quotes"),
        (Guide("json_schema", "[1]"), "a schema is a JSON object"),
        (Guide("json_schema", '{"type": "objct"}'), "objct"),
        (Guide("json_schema", '{"$ref": "http://127.0.0.1:1/x"}'), "does not fetch"),
        (Guide("json_schema", '{"allOf": [false]}'), "nsatisfiable"),
        (Guide("json_schema", '{"not":' * 3000 + "{}" + "}" * 3000), "recursion"),
        (Guide("regex", "[a-"), "unclosed"),
        (Guide("regex", "(" * 5000 + ")" * 5000), "invalid regex"),
        (Guide("ebnf_grammar", "root ::= ((\n"), "Expected"),
        (Guide("ebnf_grammar", "root ::= nothere\n"), "nothere"),
        (Guide("ebnf_grammar", "root ::= " + "(" * 5000), "recursion"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else value.kind,
)
def test_a_bad_grammar_says_why(grammars: Grammars, guide: Guide, hint: str) -> None:
    with pytest.raises(RequestError, match="cannot be used as") as caught:
        grammars.compile(guide).result(20)
    assert hint in caught.value.why


@pytest.mark.parametrize(
    ("guide", "hint"),
    [
        (Guide("yaml", "x"), "'yaml' is unknown"),  # type: ignore[arg-type]
        (Guide("regex", " "), "empty"),
        (Guide("regex", "a" * 2**21), "2097152 characters"),
    ],
)
def test_a_guide_is_looked_at_before(guide: Guide, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        check_guide(guide)


def test_a_missing_tokenizer_says_so(tmp_path: Path) -> None:
    grammars = Grammars(tmp_path, VOCAB)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be used"):
        grammars.compile(Guide("json")).result(20)
    grammars.close()
