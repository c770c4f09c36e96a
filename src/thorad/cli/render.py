"""What the verbs print: lines, tables, a progress bar, and errors of one line."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from thorad import __version__
from thorad.errors import Interrupted, ThoradError
from thorad.io.atomic import write_atomic
from thorad.io.tables import counted
from thorad.io.text import printable
from thorad.table import Table

if TYPE_CHECKING:
    from thorad.apps.prepare import PrepareSummary
    from thorad.apps.run import RunSummary

RESUMES = "Run the same command again to resume."
STARTS_OVER = "Nothing was written. Run the same command again to start over."

STDOUT = Path("-")
"""What `--json` calls stdout."""

LINE_SECONDS = 30.0
"""Between two lines of progress where stderr is no terminal."""

out_console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)
log = logging.getLogger("thorad")


class _Lines(logging.Handler):
    """Writes a log to stderr: lines above a bar on a terminal, with the time elsewhere; each warning once a verb."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        warns = record.levelno >= logging.WARNING
        if warns and text in self._warned:
            return
        self._warned |= {text} if warns else set()
        if not error_console.is_terminal:
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
        error_console.print(text, style="yellow" if warns else None, markup=False, highlight=False)


def set_log_level(level: str) -> None:
    """Show what thorad's modules log from a level on, and warnings if they are of it."""
    log.setLevel(level.upper())
    log.propagate = False
    log.handlers = [_Lines()]


set_log_level("info")


def print_line(text: str = "", style: str | None = None) -> None:
    """Print a line on stdout, as it is but for what acts on a terminal."""
    out_console.print(printable(text), style=style, markup=False, highlight=False)


def print_error(text: str) -> None:
    """Print a red line on stderr."""
    error_console.print(printable(text), style="red", markup=False, highlight=False)


def print_warning(text: str) -> None:
    """Print a yellow line on stderr, unless the log level leaves warnings out."""
    if log.isEnabledFor(logging.WARNING):
        error_console.print(printable(text), style="yellow", markup=False, highlight=False)


def print_outcome(summary: RunSummary | PrepareSummary, part: str = "") -> None:
    """Print how many cases were done, how many of them by an earlier run or warned, and how many have no result."""
    among = {"before": summary.already_done, "warned": len(summary.warned)}
    of_them = ", ".join(f"{count} of them {what}" for what, count in among.items() if count)
    refused = f", {len(summary.refused)} refused" if summary.refused else ""
    counts = f"{len(summary.done)} done{of_them and f' ({of_them})'}{refused}, {len(summary.failed)} failed"
    print_line(f"{part}{counts}, in {summary.seconds:.1f} s.")


def print_left_out(left_out: Mapping[str, int]) -> None:
    """Print why how many files of the inputs were left out, if any were."""
    if left_out:
        print_line(counted(left_out))


def end_with_failures(
    failed: Mapping[str, str],
    refused: Mapping[str, str] = MappingProxyType({}),
    about: str = "",
    *,
    what: str = "failed",
) -> None:
    """Print an error for each of {name: reason}, and end the verb with exit code 1 if there is any.

    `about` is what to say where any was refused; `what` became of those that failed.
    """
    for name, reason in failed.items():
        print_error(f"{name} {what}: {reason}")
    for name, reason in refused.items():
        print_error(f"{name} refused: {reason}")
    if refused:
        print_error(about)
    if failed or refused:
        raise typer.Exit(1)


def in_short(cases: Mapping[str, str]) -> dict[str, str]:
    """{name: the first of its reasons, without the figures in brackets}; dots for what was left out."""
    short = {name: re.sub(r" \([^()]*\d[^()]*\)", "", reason).split("; ")[0] for name, reason in cases.items()}
    return {name: reason if reason == cases[name] else f"{reason} ..." for name, reason in short.items()}


def by_reason(cases: Mapping[str, str]) -> dict[str, str]:
    """{name: reason} with cases whose reasons differ in numbers and paths alone as one, `a and 7 more`: of their
    numbers the smallest and the largest, of their paths the first.
    """
    alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name, reason in cases.items():
        parts = re.split(r"(\S*/\S*|\d+(?:\.\d+)?)", reason)  # every other one is a path or a number
        alike.setdefault(tuple(parts[::2]), {})[name] = parts
    told = {}
    for of_cases in alike.values():
        first, *others = of_cases
        together = [_together(parts) for parts in zip(*of_cases.values(), strict=True)]
        told[f"{first} and {len(others)} more (cases.csv)" if others else first] = "".join(together)
    return told


def _together(parts: Sequence[str]) -> str:
    if len(set(parts)) == 1 or "/" in parts[0]:
        return parts[0]
    return f"{min(parts, key=float)} to {max(parts, key=float)}"


def print_warnings(warned: Mapping[str, str]) -> None:
    """Print a warning for each of {name: reason}."""
    for name, reason in warned.items():
        print_warning(f"{name}: {reason}")


def print_table(table: Table) -> None:
    """Print a table, its notes and the tables below it.

    Numbers and the first column are never cut, even if a narrow terminal then breaks the lines; other text wraps.
    """
    rows = [[printable(cell) for cell in row] for row in table.rows]
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(table.columns):
        text = table.is_text(index)
        whole = index == 0 or not text
        width = max(len(cell) for cell in (column, *(row[index] for row in rows)))
        drawn.add_column(column, justify="left" if text else "right", no_wrap=whole, min_width=width if whole else None)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    if table.title:
        print_line(table.title, style="bold")
    needed = Measurement.get(out_console, out_console.options.update(width=1000), drawn).minimum
    Console(width=max(needed, out_console.width), stderr=out_console.stderr).print(drawn)
    for note in table.notes:
        parts = (Text(part, "bold" if index % 2 else "") for index, part in enumerate(note.split("**")))
        out_console.print(Text.assemble(*parts), soft_wrap=not out_console.is_terminal)
    for below in table.more:
        print_line()
        print_table(below)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write a verb's figures as JSON to a file or `STDOUT`, if a path is given; what isn't finite is null."""
    if path is None:
        return
    from pydantic import ConfigDict, TypeAdapter

    content = {"thorad": __version__, **figures}
    writer = TypeAdapter(dict[str, Any], config=ConfigDict(ser_json_inf_nan="null"))
    text = writer.dump_json(content, indent=2, fallback=lambda number: number.item()) + b"\n"
    if path == STDOUT:
        sys.stdout.write(text.decode())
    else:
        write_atomic(path, text)
        print_line(f"Figures: {path}")


def case_figures(summary: RunSummary | PrepareSummary, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What became of each case, for `write_json`: its status, what is to be said of it, and its results."""
    cases = {name: {"status": "ok", "message": "", **result} for name, result in results.items()}
    apart = {"warned": summary.warned, "refused": summary.refused, "failed": summary.failed}
    for status, messages in apart.items():
        for name, message in messages.items():
            cases[name] = {**cases.get(name, {}), "status": status, "message": message}
    return {"cases": cases, "already_done": summary.already_done, "seconds": summary.seconds}


@contextmanager
def words_on_stderr(asked: bool) -> Iterator[None]:
    """Let stderr have what is printed for people, if asked: a program reads stdout."""
    before, out_console.stderr = out_console.stderr, asked
    try:
        yield
    finally:
        out_console.stderr = before


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A bar with the remaining time; a line of the log now and then if stderr is no terminal.

    Yields a function of (done, total, title).
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = not quiet and log.isEnabledFor(logging.INFO)
    began = line = time.monotonic()
    with Progress(
        *columns,
        *(TextColumn("remaining"), TimeRemainingColumn()),
        console=error_console,
        disable=not (shown and error_console.is_terminal),
    ) as bar:

        def report(done: int, total: int, now: str = title) -> None:
            nonlocal line
            if not bar.tasks:
                bar.add_task(printable(now), total=total, completed=done)
            bar.update(bar.tasks[0].id, completed=done, description=printable(now))
            if shown and bar.disable and done < total and time.monotonic() - line >= LINE_SECONDS:
                line = time.monotonic()
                left = timedelta(seconds=round((line - began) / done * (total - done))) if done else "?"
                log.info("%s: %d of %d, %s left", now, done, total, left)

        yield report


@contextmanager
def one_line_errors(interrupted: str) -> Iterator[None]:
    """Turn what the user can mend, and an end by a signal, into one line on stderr and an exit code.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    try:
        yield
    except Interrupted as stop:
        if str(stop):
            print_error(str(stop))
        raise typer.Exit(128 + stop.signum) from stop
    except ThoradError as error:
        log.debug("Where the error comes from:\n%s", traceback.format_exc())
        print_error(f"Error: {error}")
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns the former into the latter.
        if not isinstance(stop if isinstance(stop, KeyboardInterrupt) else stop.__context__, KeyboardInterrupt):
            raise
        print_error(f"Interrupted. {interrupted}")
        raise typer.Exit(130) from stop
