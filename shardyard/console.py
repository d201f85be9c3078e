"""What reaches the terminal: lines, progress, tables. Rich on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Advance", "Console", "human_bytes"]

#: Seconds between two plain progress lines when the output is piped.
PLAIN_INTERVAL = 2.0


class Advance(Protocol):
    """Reports that ``amount`` more of the work is done; ``note`` says what is being worked on."""

    def __call__(self, amount: float = 1.0, note: str = "") -> None:
        """Advance the bar."""


class Console:
    """One place for all output.

    ``quiet`` drops progress and remarks, never results or errors; ``explain`` gives every reason why a stage ran, not
    only the first.
    """

    def __init__(self, *, quiet: bool = False, explain: bool = False) -> None:
        self.quiet = quiet
        self.explain = explain
        self.out = RichConsole(highlight=False, soft_wrap=True)
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str = "", *, style: str | None = None) -> None:
        """Print a remark; markup in ``text`` is not interpreted."""
        if not self.quiet:
            self.out.print(escape(text), style=style)

    def result(self, text: str, *, end: str = "\n") -> None:
        """Print a result: what the command was run for. Goes out unchanged, even when quiet."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def stage(self, name: str, text: str) -> None:
        """Print one line about a stage, its name first."""
        if not self.quiet:
            self.out.print(f"[bold cyan]{escape(name):>8}[/]  {escape(text)}")

    def warn(self, text: str) -> None:
        """Print a warning to standard error."""
        self.err.print(f"warning: {escape(text)}", style="yellow")

    def error(self, text: str) -> None:
        """Print an error to standard error."""
        first, _, rest = text.partition("\n")
        self.err.print(f"[bold red]error:[/] {escape(first)}")
        if rest:
            self.err.print(escape(rest))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table: rich on a terminal, tab-separated lines when piped."""
        cells = [[str(cell) for cell in row] for row in rows]
        if not self.out.is_terminal:
            self.result("\n".join([f"# {title}", "\t".join(columns), *("\t".join(row) for row in cells)]))
            return
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in cells:
            table.add_row(*(escape(cell) for cell in row))
        self.out.print(table)

    @contextmanager
    def progress(self, title: str, total: float, unit: str = "") -> Iterator[Advance]:
        """Show progress from 0 to ``total``; with unit ``B`` amounts are shown as bytes."""
        if self.quiet:
            yield _ignore
        elif self.out.is_terminal:
            with _bar(self.out) as bar:
                task = bar.add_task(title, total=total, note="")

                def advance(amount: float = 1.0, note: str = "") -> None:
                    bar.update(task, advance=amount, note=note)

                yield advance
        else:
            plain = _PlainProgress(self, title, total, unit)
            yield plain
            plain.finish()


def _ignore(amount: float = 1.0, note: str = "") -> None:
    """Drop progress."""


def _bar(console: RichConsole) -> Progress:
    return Progress(
        TextColumn("{task.description:>18}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=True,
    )


class _PlainProgress:
    """Progress as a line every few seconds, for logs; silent for work that ends sooner."""

    def __init__(self, console: Console, title: str, total: float, unit: str) -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done = 0.0
        self.started = self.shown = time.monotonic()

    def __call__(self, amount: float = 1.0, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.shown >= PLAIN_INTERVAL:
            self.shown = now
            self._line(note)

    def finish(self) -> None:
        """Print the last line if any was printed before it."""
        if self.shown != self.started:
            self._line("")

    def _line(self, note: str) -> None:
        share = 100.0 * self.done / self.total if self.total else 100.0
        amount = human_bytes(self.done) if self.unit == "B" else f"{self.done:g} {self.unit}".rstrip()
        seconds = time.monotonic() - self.started
        self.console.say(f"{self.title}: {share:3.0f} % ({amount}) after {seconds:.0f} s {note}".rstrip())


def human_bytes(count: float) -> str:
    """Return a byte count with a decimal unit, e.g. ``1.50 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
