"""coordinator: A federation's coordinator: keys, enrolments, serving."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="A federation's coordinator: keys, enrolments, serving."
)


def register(parent: typer.Typer) -> None:
    """Add the commands of this group."""
    parent.add_typer(app, name="coordinator")
