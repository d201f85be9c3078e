"""``verify --perplexity``: how surprised the model is by a text, before and after its weights were quantized."""

from __future__ import annotations

import argparse

from shardyard.cli.context import Context
from shardyard.errors import UsageError

__all__ = ["perplexity"]


def perplexity(args: argparse.Namespace) -> None:
    """Tokenize the text file as a prompt would be, run it through the rank files, and print the figures.

    Raises:
        UsageError: the file cannot be read or is too short.
    """
    from shardyard.builder.proof.perplexity import measure_perplexity
    from shardyard.model_repo.models.tokenizer import Tokenizer

    context = Context.of(args)
    try:
        text = args.perplexity.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{args.perplexity} cannot be read", why=str(error), fix="give a text file in UTF-8") from None
    tokens = Tokenizer.load(context.pipeline.tokenizer_path()).encode(text)
    found = measure_perplexity(
        context.pipeline, context.work.checkpoint, tokens, context.console, args.context, args.stride
    )
    context.console.result(" ".join(f"{each.value:.4f}" for each in found))
