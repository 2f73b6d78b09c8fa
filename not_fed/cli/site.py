"""site: A data holder's site: keys, policy, joining a federation."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="A data holder's site: keys, policy, joining a federation."
)


def register(parent: typer.Typer) -> None:
    """Add the commands of this group."""
    parent.add_typer(app, name="site")
