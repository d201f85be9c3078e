"""``infer`` and ``chat``: a running endpoint, from the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from shardyard.cli.context import Context
from shardyard.endpoint import Endpoint, read_endpoint
from shardyard.errors import ShardyardError, UsageError

if TYPE_CHECKING:
    from shardyard.triton.client import GenerateRequest

__all__ = ["ask", "chat", "infer"]


def infer(args: argparse.Namespace) -> None:
    """Stream one answer to standard output."""
    context = Context.of(args)
    endpoint = read_endpoint(context.work.endpoint)
    from shardyard.triton.client import StreamClient

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    several = (args.answers or args.beam_width or 1) > 1
    with StreamClient(endpoint) as client:
        if several:
            _print_all(context, client.answers(_several(args, prompt)))
        else:
            _stream(context, client.generate(_several(args, prompt)))


def ask(context: Context, endpoint: Endpoint, prompt: str, max_tokens: int) -> str:
    """Ask greedily and stream prompt and answer to the terminal; return the answer."""
    from shardyard.triton.client import GenerateRequest, StreamClient

    context.console.result(f"  {prompt}│", end="")
    with StreamClient(endpoint) as client:
        return _stream(context, client.generate(GenerateRequest(text=prompt, max_tokens=max_tokens)))


def chat(args: argparse.Namespace) -> None:
    """Read lines, answer each with the whole conversation so far as context."""
    from shardyard.model_repo.chat import load_chat_template
    from shardyard.triton.client import StreamClient

    context = Context.of(args)
    endpoint = read_endpoint(context.work.endpoint)
    template = load_chat_template(context.pipeline.tokenizer_path())
    messages = [{"role": "system", "content": args.system}] if args.system else []
    context.console.say("empty line or Ctrl-D ends the chat", style="dim")
    with StreamClient(endpoint) as client:
        while question := _read_line():
            messages.append({"role": "user", "content": question})
            try:
                answer = _stream(context, client.generate(_request(args, template.render(messages))))
            except ShardyardError as error:
                # One refused turn, for example a conversation that has grown too long, must not end the chat.
                context.console.error(str(error))
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return ""


def _stream(context: Context, deltas: Iterator[str]) -> str:
    parts = []
    for delta in deltas:
        context.console.result(delta, end="")
        parts.append(delta)
    context.console.result("")
    return "".join(parts)


def _print_all(context: Context, responses: Iterator[list[str]]) -> None:
    answers = [text for texts in responses for text in texts]
    for number, answer in enumerate(answers, 1):
        context.console.result(f"[{number}] {answer}")


def _several(args: argparse.Namespace, text: str) -> GenerateRequest:
    several = (args.answers or args.beam_width or 1) > 1
    return replace(
        _request(args, text),
        answers=args.answers,
        beam_width=args.beam_width,
        length_penalty=args.length_penalty,
        early_stopping=args.early_stopping,
        beam_diversity=args.beam_diversity,
        stream=not several,
        exclude_prompt=True if several else None,
    )


def _request(args: argparse.Namespace, text: str) -> GenerateRequest:
    from shardyard.triton.client import GenerateRequest

    sampled = bool(args.temperature) and args.top_k is None and args.top_p is None
    kind, _, guide = (args.guide or "").partition(":")
    return GenerateRequest(
        text=text,
        max_tokens=args.max_tokens,
        temperature=args.temperature or None,
        top_k=args.top_k,
        # TensorRT-LLM stays greedy until top_k or top_p is given: a temperature alone asks for the whole distribution.
        top_p=1.0 if sampled else args.top_p,
        seed=args.seed,
        repetition_penalty=args.repetition_penalty,
        stop_words=tuple(args.stop),
        bad_words=tuple(args.bad),
        bias=tuple(_bias(text) for text in args.bias),
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        min_tokens=args.min_tokens,
        min_p=args.min_p,
        top_p_min=args.top_p_min,
        top_p_decay=args.top_p_decay,
        top_p_reset_id=args.top_p_reset_id,
        priority=args.priority,
        deadline_ms=args.deadline_ms,
        lora_id=args.lora_id,
        guide=(kind, guide) if kind else None,
    )


def _bias(text: str) -> tuple[str, float]:
    word, _, weight = text.rpartition("=")
    try:
        if word:
            return word, float(weight)
    except ValueError:
        pass
    raise UsageError(f"--bias {text} is not possible", "it is a word and a number", "for example: --bias river=2")
