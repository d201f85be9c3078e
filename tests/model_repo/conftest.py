"""Tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from shardyard.artifacts import write_artifact
from shardyard.builder.targets.tensorrt_llm_api import build_tensorrt_llm_api
from shardyard.console import Console
from shardyard.model_repo.fill import fill
from shardyard.model_repo.models.tokenizer import Tokenizer
from shardyard.pipeline_file import parse_pipeline

TEXT = [
    "A river begins as rain on a hill. It gathers in small streams, and grows as others join it.",
    "don't stop, I'm here; we've been there! Is it so? Yes: it is so. Le train part à huit heures.",
    "der Zug fährt um neun; el tren sale a las diez. ¿Quién llega primero? 東京は今、何時ですか。 你好，世界 🙂🚀",
    "\tif (x < 10) {\n\t\treturn  x;\n\t}\n",
]
SPECIAL = ["<s>", "</s>", "<|turn|>", "<unk>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def _byte_level() -> Library:
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _llama2() -> Library:
    """Sentencepiece as Llama 2 has it: spaces as ▁, bytes for what the vocabulary lacks, the first space stripped."""
    tokenizer = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    latin = [text for text in TEXT if text.isascii()]
    tokenizer.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *BYTES]))
    tokenizer.add_tokens(BYTES)
    return _without_byte_specials(tokenizer)


def _without_byte_specials(tokenizer: Library) -> Library:
    """Byte tokens are ordinary entries of the vocabulary, neither added nor special: rebuild the model without that."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return Library.from_str(json.dumps(content))


def _metaspace() -> Library:
    tokenizer = Library(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL))
    return tokenizer


def _unigram() -> Library:
    tokenizer = Library(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _word_piece() -> Library:
    tokenizer = Library(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return tokenizer


def _word_end() -> Library:
    """BPE that marks the ends of words, as the first GPT."""
    tokenizer = Library(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Library]] = {
    "byte-level BPE": _byte_level,
    "sentencepiece BPE with byte fallback": _llama2,
    "sentencepiece BPE": _metaspace,
    "unigram": _unigram,
    "WordPiece": _word_piece,
    "BPE with word ends": _word_end,
}


@pytest.fixture(scope="session")
def libraries() -> dict[str, Library]:
    """One tokenizer of each kind; each puts <s> before a text."""
    made = {name: make() for name, make in KINDS.items()}
    for tokenizer in made.values():
        begin = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return made


@pytest.fixture(scope="session")
def tokenizers(libraries: dict[str, Library]) -> dict[str, Tokenizer]:
    """The same, as the models use them."""
    return {name: Tokenizer(library) for name, library in libraries.items()}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """A tokenizer of each kind in turn."""
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def byte_level(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """The kind that most models have."""
    return tokenizers["byte-level BPE"]


def _write_gpu_engine(folder: Path, *, plugins: dict[str, Any], model: dict[str, Any], **build: Any) -> None:
    config = {
        "version": "1.0.0",
        "pretrained_config": {"dtype": "bfloat16", "vocab_size": 515, "mapping": {"world_size": 2}, **model},
        "build_config": {
            "max_batch_size": 4,
            "max_seq_len": 128,
            "max_num_tokens": 64,
            "kv_cache_type": "PAGED",
            "plugin_config": {"use_paged_context_fmha": True, "remove_input_padding": True, **plugins},
            **build,
        },
    }
    with write_artifact(folder, "build", folder.parent, {}, {}, {}) as draft:
        (draft.folder / "config.json").write_text(json.dumps(config))
        for rank in range(2):
            (draft.folder / f"rank{rank}.engine").write_bytes(b"ftrt")


@pytest.fixture
def fill_gpu(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Fill a repository for an engine of two ranks; arguments change its config.json and the pipeline's gpu section."""

    def make(
        serve: dict[str, Any] | None = None,
        *,
        plugins: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        build: dict[str, Any] | None = None,
        **gpu: Any,
    ) -> Path:
        engine = tmp_path / "engine"
        _write_gpu_engine(engine, plugins=plugins or {}, model=model or {}, **(build or {}))
        raw = {
            "name": "t",
            "model": {"checkpoint": str(make_checkpoint())},
            "engine": {"target": "tensorrt_llm"},
            "serve": {**(serve or {}), "gpu": gpu},
        }
        return fill(parse_pipeline(raw), engine, tmp_path / "model_repo", Console(quiet=True)).folder

    return make


@pytest.fixture(scope="session")
def fill_llm_api(make_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """Fill a repository for the LLM API below a folder; arguments change the pipeline's sections."""

    def make(folder: Path, serve: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Path:
        source = shutil.copytree(make_checkpoint(), folder / "checkpoint", dirs_exist_ok=True)
        raw = {
            "name": "t",
            "model": {"checkpoint": str(source)},
            "engine": {"target": "tensorrt_llm_api", "gpu": "H100", **sections.pop("engine", {})},
            "serve": serve or {},
            **sections,
        }
        pipeline, quiet = parse_pipeline(raw), Console(quiet=True)
        build_tensorrt_llm_api(pipeline, folder / "none", folder / "engine", quiet)
        return fill(pipeline, folder / "engine", folder / "model_repo", quiet).folder

    return make
