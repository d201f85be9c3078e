"""What ``preprocessing`` does: a request's text to the tensors of ``tensorrt_llm``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shardyard.calls import CALL, ENDED, SHORTCUT, TRACE
from shardyard.errors import RequestError
from shardyard.model_repo.models.arrays import Tensors, integer, text, texts
from shardyard.model_repo.models.bias_words import bias_of_words
from shardyard.model_repo.models.lengths import check_lengths
from shardyard.model_repo.models.text_limits import TextLimits
from shardyard.model_repo.models.text_state import Follower
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.model_repo.models.word_lists import pack_words
from shardyard.model_repo.unsupported import refuse_unsupported

if TYPE_CHECKING:  # Triton's stub alone can import it.
    from shardyard.model_repo.models.triton_io import Settings

__all__ = ["Preprocessor", "check_parameters"]

#: Request parameters that are Triton's own: generate's "id" comes as one too.
_TRITONS = frozenset({"id", CALL, ENDED, SHORTCUT, TRACE})


@dataclass(frozen=True)
class Preprocessor:
    """``end_ids``: every id that ends an answer; ``pad_id``: what fills short rows; ``max_prompt``: its most tokens;
    ``vocab_size``: the engine's, 0 where it takes no bias of words.
    """

    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    pad_id: int
    max_seq_len: int
    max_prompt: int
    vocab_size: int
    add_special_tokens: bool = True
    limits: TextLimits = field(default_factory=TextLimits)

    @classmethod
    def read(cls, settings: Settings, tokenizer: Tokenizer) -> Preprocessor:
        """Return the one that a model's parameters tell of."""
        return cls(
            tokenizer=tokenizer,
            end_ids=tuple(json.loads(settings.parameter("end_ids"))),
            pad_id=int(settings.parameter("pad_id")),
            max_seq_len=int(settings.parameter("max_seq_len")),
            max_prompt=int(settings.parameter("max_prompt")),
            vocab_size=int(settings.parameter("vocab_size")),
            add_special_tokens=settings.flag("add_special_tokens"),
            limits=TextLimits(int(settings.parameter("max_prompt_bytes")), int(settings.parameter("max_words"))),
        )

    def __call__(self, tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Return the output tensors, each with a batch dimension of 1.

        Raises:
            RequestError: the prompt or the length of the answer is not possible.
        """
        refuse_unsupported(tensors)
        self.limits.check(tensors)
        self._check_bias(tensors)
        prompt = self._prompt(tensors)
        if "REQUEST_OUTPUT_LEN" not in tensors:
            raise RequestError("max_tokens is missing", "every answer needs a limit", "send max_tokens, 1 or more")
        new = integer(tensors, "REQUEST_OUTPUT_LEN")
        check_lengths(len(prompt), new, self.max_seq_len)
        if len(prompt) > self.max_prompt:
            why = f"the engine takes prompts of up to {self.max_prompt}"
            raise RequestError(f"the prompt has {len(prompt)} tokens", why, "send a shorter prompt")
        end_id, also_end = self._ends(tensors)
        words = [*self._words(tensors, "STOP_WORDS_DICT"), *([index] for index in also_end)]
        return {
            "INPUT_ID": np.array([prompt], dtype=np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(prompt)]], dtype=np.int32),
            "STOP_WORDS_IDS": pack_words(words)[None],
            "BAD_WORDS_IDS": pack_words(self._words(tensors, "BAD_WORDS_DICT"))[None],
            "EMBEDDING_BIAS": bias_of_words(tensors, self._encode, self.vocab_size)[None],
            "REQUEST_OUTPUT_LEN": np.array([[new]], dtype=np.int32),
            "OUT_END_ID": np.array([[end_id]], dtype=np.int32),
            "OUT_PAD_ID": np.array([[integer(tensors, "PAD_ID", self.pad_id)]], dtype=np.int32),
            "FOLLOWER": np.array([[Follower.ENSEMBLE]], dtype=np.int32),
        }

    def _check_bias(self, tensors: Tensors) -> None:
        for name in ("embedding_bias_words", "embedding_bias_weights"):
            if name.upper() in tensors and not self.vocab_size:
                raise RequestError(f"{name} is not possible", "it would have no effect", "leave it out")

    def _prompt(self, tensors: Tensors) -> list[int]:
        prompt = text(tensors, "QUERY")
        if prompt is None:
            raise RequestError("text_input is missing", "there is nothing to go on from", "send a prompt")
        if not prompt:
            raise RequestError("the prompt is empty", "there is nothing to go on from", "send some text")
        ids = self.tokenizer.encode(prompt, special=self.add_special_tokens)
        if not ids:
            raise RequestError("the prompt is empty", "the tokenizer makes no tokens of it", "send some text")
        return ids

    def _ends(self, tensors: Tensors) -> tuple[int, tuple[int, ...]]:
        """Return the end id, and the other ids that end an answer. A request's own end id is the only one."""
        if "END_ID" in tensors:
            return integer(tensors, "END_ID"), ()
        return (self.end_ids[0], self.end_ids[1:]) if self.end_ids else (-1, ())

    def _words(self, tensors: Tensors, name: str) -> list[list[int]]:
        return [self._encode(word) for word in texts(tensors, name) if word]

    def _encode(self, word: str) -> list[int]:
        return self.tokenizer.encode(word, special=False)


def check_parameters(parameters: str, known: Collection[str]) -> None:
    """Refuse request parameters: what /generate gets in its JSON and is not an input arrives as one.

    Raises:
        RequestError: there is one; the error names the nearest input.
    """
    given: Mapping[str, object] = json.loads(parameters or "{}")
    for name in given:
        if name.lower() in _TRITONS:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise RequestError(f"unknown parameter {name!r}", "the model has no input of that name", fix)
