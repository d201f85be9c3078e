"""Every verb with its arguments and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from shardyard import __version__
from shardyard.cli import inspect, measure, serve, stages, talk

__all__ = ["build_parser"]

Verb = Callable[[argparse.Namespace], int | None]

_DESCRIPTION = """\
From a Hugging Face checkpoint to a load-tested, sharded Triton endpoint.

  shardyard up examples/demo.yaml        all of it: convert, verify, build, fill, serve, perf
  shardyard plan examples/demo.yaml      what each rank will hold, from headers alone
"""
_EPILOG = """\
exit codes: 0 done · 2 usage or pipeline file · 3 checkpoint or artifact · 4 tool chain or machine
            5 launch, worker or request · 6 a measurement that missed its bar
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="shardyard", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"shardyard {__version__}")
    verbs = parser.add_subparsers(dest="verb_name", metavar="VERB", required=True)

    def verb(name: str, function: Verb, text: str, *, pipeline: bool = True) -> argparse.ArgumentParser:
        summary = text.split(". ")[0].rstrip(".")
        sub = verbs.add_parser(name, help=summary, description=text)
        sub.set_defaults(verb=function)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        sub.add_argument("--quiet", "-q", action="store_true", help="results and errors only")
        if pipeline:
            _pipeline_arguments(sub)
        return sub

    _stage_verbs(verb)
    _endpoint_verbs(verb)
    _perf_verbs(verb)
    trace = verb("trace", inspect.trace, _TRACE, pipeline=False)
    trace.add_argument("path", type=Path, help="an artifact's folder or a file in one, e.g. work/demo/model_repo")
    trace.add_argument("--check", action="store_true", help="hash every file of the chain again")
    verb("doctor", inspect.doctor, _DOCTOR, pipeline=False)
    return parser


_TRACE = "Print the chain of manifests from an artifact back to the source checkpoint. With --check, hash it all again."
_DOCTOR = "Check Python, MPI, tritonserver, its stub, the compiler, ports and memory. Says how to mend what is wrong."


def _pipeline_arguments(sub: argparse.ArgumentParser, nargs: str | None = None) -> None:
    sub.add_argument("pipeline", type=Path, nargs=nargs, help="pipeline file, e.g. examples/demo.yaml")
    sub.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field, e.g. --set parallel.tp=2 (repeatable)",
    )
    sub.add_argument("--work", type=Path, default=Path("work"), metavar="DIR", help="where artifacts go (work)")


#: What a stage's verb takes beside what all of them do.
_STAGE_FLAGS = {
    "convert": {
        "--dry-run": "show bytes per rank, time and memory, and what cannot work; config.json is enough, nothing runs",
    },
    "verify": {"--full": "compare every byte of large tensors, not samples of them"},
    "build": {
        "--print": "print the commands and the memory calculation of a GPU target; config.json is enough, nothing runs",
        "--uncertified": "build for GPUs without the certificate that verify writes",
    },
}

#: Options of stages' verbs: the type of their value, its name, their meaning.
_STAGE_OPTIONS: dict[str, dict[str, tuple[Callable[[str], object], str, str]]] = {
    "verify": {
        "--checkpoint": (Path, "DIR", "rank files to verify, whatever made them (those of convert)"),
        "--perplexity": (Path, "FILE", "instead, measure this text's perplexity before and after quantization"),
        "--context": (int, "TOKENS", "perplexity: tokens of a window (512, or what the model was trained for)"),
        "--stride": (int, "TOKENS", "perplexity: from the beginning of a window to that of the next (256)"),
    },
}


def _stage_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    plan = verb(
        "plan",
        inspect.plan,
        "Show what every rank will hold and what cannot work, from headers alone. Nothing is written.",
        pipeline=False,
    )
    plan.add_argument("--fields", action="store_true", help="list every field of the pipeline file instead")
    _pipeline_arguments(plan, nargs="?")  # plan --fields needs no file
    texts = {
        "convert": "Cut the checkpoint into one rank file per tp × pp rank, in TensorRT-LLM's unified layout.",
        "verify": "Prove the rank files: byte for byte, then over MPI against an unsharded reference.",
        "build": "Build one engine per rank from the rank files: for this CPU, or with trtllm-build for the GPUs that "
        "engine.instance or engine.gpu names.",
        "fill": "Fill the Triton model repository that serves the engine.",
    }
    for name, text in texts.items():
        stage = verb(name, stages.STAGE_VERBS[name], text + " Does nothing when its inputs have not changed.")
        stage.add_argument("--why", action="store_true", help="give every reason why the stage ran, not only the first")
        for flag, meaning in _STAGE_FLAGS.get(name, {}).items():
            stage.add_argument(flag, action="store_true", help=meaning)
        for option, (kind, metavar, meaning) in _STAGE_OPTIONS.get(name, {}).items():
            stage.add_argument(option, type=kind, metavar=metavar, help=meaning)
    up = verb("up", stages.up, "Do all of it: convert, verify, build, fill, serve, ask, measure, report, stop.")
    up.add_argument("--why", action="store_true", help="give every reason why a stage ran, not only the first")
    up.add_argument("--prompt", action="append", metavar="TEXT", help="ask this (repeatable; default: three prompts)")
    up.add_argument("--max-tokens", type=int, default=32, help="length of each answer (32)")
    up.add_argument("--no-perf", action="store_true", help="leave out the load test")


def _endpoint_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    serving = verb(
        "serve",
        serve.serve,
        "Launch Triton and every rank, and stay in the foreground until Ctrl-C or SIGTERM: then open requests are "
        "finished. Stages that are not up to date run first. Ends with status 5 when a rank dies or hangs.",
    )
    serving.add_argument(
        "--restart",
        nargs="?",
        type=int,
        const=None,
        default=0,
        metavar="TIMES",
        help="start the world again when a rank dies or hangs, at most so many times (no limit), after 1 s, 2 s, 4 s …",
    )
    serving.add_argument("--print", action="store_true", help="print the command that would be launched, and stop")
    infer = verb("infer", talk.infer, "Ask a running endpoint once and stream the answer.")
    infer.add_argument("prompt", help="the text to go on from; - reads standard input")
    _sampling_arguments(infer)
    _several_arguments(infer)
    chat = verb("chat", talk.chat, "Talk to a running endpoint through the tokenizer's chat template.")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    _sampling_arguments(chat)


def _several_arguments(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("several answers", "They are printed when all are whole, one after the other.")
    group.add_argument("--answers", type=int, metavar="N", help="so many answers to the prompt (1, or all beams)")
    group.add_argument("--beam-width", type=int, metavar="N", help="beam search with so many beams")
    group.add_argument("--length-penalty", type=float, help="above 0: longer beams are better; below: shorter ones (0)")
    group.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="end when as many beams as asked for have ended, or only when no better one can come (the former)",
    )
    group.add_argument("--beam-diversity", type=float, help="above 0: lower beams are kept more often")


def _sampling_arguments(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("generation")
    group.add_argument("--max-tokens", type=int, default=128, help="longest answer, in tokens (128)")
    group.add_argument("--temperature", type=float, help="above 0: sample instead of taking the likeliest token")
    group.add_argument("--top-k", type=int, help="sample among the k likeliest tokens")
    group.add_argument("--top-p", type=float, help="sample among the likeliest tokens that make up this probability")
    group.add_argument("--seed", type=int, help="the same seed gives the same answer")
    group.add_argument("--repetition-penalty", type=float, help="above 1: repeat less")
    group.add_argument("--presence-penalty", type=float, help="above 0: what was there becomes less likely, once")
    group.add_argument("--frequency-penalty", type=float, help="above 0: less likely each time that it was there")
    group.add_argument("--min-tokens", type=int, help="no end before so many tokens")
    group.add_argument("--min-p", type=float, help="leave out tokens below this share of the likeliest's probability")
    group.add_argument("--top-p-decay", type=float, help="multiply top-p by this after each token")
    group.add_argument("--top-p-min", type=float, help="and stop at this")
    group.add_argument("--top-p-reset-id", type=int, metavar="ID", help="this token sets top-p back")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text (repeatable)")
    group.add_argument("--bad", action="append", default=[], metavar="TEXT", help="never say this (repeatable)")
    group.add_argument(
        "--bias",
        action="append",
        default=[],
        metavar="TEXT=WEIGHT",
        help="say this more (above 0) or less (repeatable)",
    )
    group.add_argument(
        "--guide", metavar="KIND:TEXT", help="what the answer must be: json, json_schema:…, regex:…, ebnf_grammar:…"
    )
    group.add_argument("--lora-id", type=int, metavar="ID", help="the adapter that answers (serve.lora_dir/ID)")
    group.add_argument("--deadline-ms", type=int, metavar="MS", help="end the answer after so long, finished or not")
    group.add_argument("--priority", type=float, help="0 to 1; a higher one is served first (0.5)")


def _perf_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    perf = verb(
        "perf",
        measure.perf,
        "Load the endpoint with locust and write results.json and report.html. Uses the running endpoint, or launches "
        "one for the test. See also: perf compare, perf ui.",
    )
    perf.add_argument("--out", type=Path, metavar="DIR", help="where the run goes (work/NAME/perf/TIME)")
    compare = verb("perf compare", measure.compare, "Compare two load tests, metric by metric.", pipeline=False)
    compare.add_argument("a", type=Path, help="folder of the base run")
    compare.add_argument("b", type=Path, help="folder of the other run")
    ui = verb("perf ui", measure.ui, "Run locust's own web page against the running endpoint, until Ctrl-C.")
    ui.add_argument("--port", type=int, default=8089, help="port of the page (8089; 0 takes a free one)")
