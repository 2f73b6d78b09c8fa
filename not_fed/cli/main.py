"""The `not-fed` command. Modules behind a command are imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated

import click
import typer

from not_fed.cli import (
    adapt,
    attack,
    audit,
    bench,
    budget,
    coordinator,
    demo,
    envelope,
    evaluate,
    federation,
    intake,
    keys,
    log,
    organ,
    recall,
    recover,
    roster,
    site,
    sweep,
)
from not_fed.cli.output import report_error, say
from not_fed.errors import NotFedError

INTERRUPTED = 130  # as shells count: 128 and the signal's number
STOPPED = "interrupted; nothing half-written was left behind; a training goes on when the same command is given again"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
    help="Federated training of neural organs: records stay home, a sealed organ travels.",
)
groups = (
    demo, site, coordinator, federation, organ, evaluate, envelope, intake, keys, roster, recall, log, budget, audit,
    attack, bench, sweep, recover, adapt,
)  # fmt: skip
for group in groups:
    group.register(app)


def _version(value: bool) -> None:
    if value:
        from not_fed import __version__

        sys.stdout.write(f"not-fed {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated training of neural organs: records stay home, a sealed organ travels."""


def main() -> None:
    """Run the command; every outcome has its documented exit code."""
    as_json = "--json" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode still hears the answer
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall whoever shares the cores
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # how Typer passes ^C on
            say(STOPPED)
        sys.exit(code if isinstance(code, int) else 0)
    except NotFedError as error:
        report_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        if done.exit_code == INTERRUPTED:  # how other versions do
            say(STOPPED)
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        say(STOPPED)
        sys.exit(INTERRUPTED)
