"""The command `thorad`: parse, call, print. Everything heavy is imported inside the verbs.

Exit codes: 0 success, 1 some files failed or were refused, 2 wrong arguments, 128 + N ended by signal N
(130: Ctrl-C).
"""

from __future__ import annotations

from typing import Annotated

import typer

from thorad import __version__
from thorad.cli import data, look, measure, train
from thorad.cli.render import print_line

app = typer.Typer(
    name="thorad",
    help="Find anomalies in medical images with models that have learned healthy anatomy only. For research; not a "
    "medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (look, train, measure, data):
    app.add_typer(group.app)


def main() -> None:
    """Run the console script."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        print_line(f"thorad {__version__}")
        raise typer.Exit


@app.callback()
def _thorad(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
