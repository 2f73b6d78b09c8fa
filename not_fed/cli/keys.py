"""keys create, keys show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase

if TYPE_CHECKING:
    from not_fed.keys import PublicIdentity

SCHEMA = "not-fed/keys/1"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="A site's keys: make them, show the public half.")
    group.command("create")(create_command)
    group.command("show")(show_command)
    app.add_typer(group, name="keys")


def create_command(
    name: Annotated[str, typer.Argument(help="What the site is called on rosters.")],
    out: Annotated[Path, typer.Option("--out", help="The key folder to make.")],
    steward: Annotated[bool, typer.Option("--steward", help="Add roster.key, to create and change rosters.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Add log.key, to sign the checkpoints of a log.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Make signing and sealing keys under a passphrase, and an identity.json to hand out."""
    from not_fed.keys import create_keys

    secret = read_passphrase(passphrase_file, passphrase_fd, confirm=True)
    identity = create_keys(out, name=name, passphrase=secret, steward=steward, log=log)
    _show(identity, as_json=as_json, folder=str(out))


def show_command(
    source: Annotated[Path, typer.Argument(help="A key folder, or an identity.json.")], as_json: AsJson = False
) -> None:
    """Check an identity, and print the fingerprint to compare over another channel."""
    from not_fed.keys import load_public_identity

    _show(load_public_identity(source), as_json=as_json)


def _show(identity: PublicIdentity, *, as_json: bool, **more: str) -> None:
    from not_fed.canonical import format_time

    result: dict[str, Any] = {
        "schema": SCHEMA, "name": identity.name, "fingerprint": identity.fingerprint, "recipient": identity.seal,
        "created": format_time(identity.created), **more,
    }  # fmt: skip
    lines = [("name", identity.name), ("fingerprint", identity.fingerprint), ("created", result["created"])]
    show(result, as_json=as_json, lines=[*lines, *more.items()])
