"""demo: three hospitals, end to end, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from not_fed.cli.federation import EngineName
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.progress import shown


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("demo")(demo_command)


def demo_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="The same with fewer records and one round: under 3 minutes.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", help="Where the result goes; an earlier demo there is replaced.")
    ] = Path("demo"),
    engine: Annotated[
        EngineName, typer.Option("--engine", help="In this process, on Flower's own engine, or as a deployment.")
    ] = EngineName.INLINE,
    processes: Annotated[
        bool, typer.Option("--processes", help="As a real deployment: gateway, SuperLink, three SuperNodes, TLS.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Three hospitals train, sign, seal, relay, verify, average and transplant on this machine; then a report."""
    from not_fed.demo import run_demo
    from not_fed.report import terminal_summary

    with shown() as progress:
        result = run_demo(
            out=out, quick=quick, engine="processes" if processes else engine.value, progress=progress, say=say
        )
    if as_json:
        show(result, as_json=True)
    else:
        sys.stdout.write(terminal_summary(result, report=out / "report.html") + "\n")
