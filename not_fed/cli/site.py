"""site: init, join; site_desk.py adds status and approve, drop.py export and import."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.cli import drop, site_desk
from not_fed.cli.output import AsJson, say, show

if TYPE_CHECKING:
    from not_fed.envelope.invitation import Invitation
    from not_fed.site.creating import CreatedSite

CREATED_SCHEMA = "not-fed/site/1"
_COMPARE = """\b
Compare both fingerprints over another channel than the files came: by telephone, with somebody whose voice or face you
know. The coordinator reads you the invitation's, you read them the enrolment's; they must agree to the last letter."""

SiteFolder = Annotated[Path, typer.Argument(metavar="HOME", help="The site's folder.")]


def register(parent: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="A data holder's site: keys, policy, joining a federation."
    )
    group.command("init", epilog=_COMPARE)(init_command)
    group.command("join")(join_command)
    site_desk.register(group)
    drop.register_site(group)
    parent.add_typer(group, name="site")


def init_command(
    home: SiteFolder,
    invitation: Annotated[Path, typer.Option("--invitation", help="The coordinator's invitation.")],
    name: Annotated[str, typer.Option("--name", help="The site's name on the roster.")],
    data: Annotated[Path, typer.Option("--data", help="The records; they stay where they are.")],
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Field or column that holds the text.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Where the base model is here. [default: as the invitation says]")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a site's folder: keys, a policy to read and change, and the enrolment for the coordinator."""
    from not_fed.site.creating import create_site

    created = create_site(
        home, invitation=invitation, name=name, data=data, text_field=text_field, base=base, now=datetime.now(UTC)
    )
    _show_created(home, created, as_json=as_json)


def join_command(
    home: SiteFolder,
    root_sha256: Annotated[
        str | None,
        typer.Option("--root-sha256", help="The first time: the roster's root, as a steward told you in person."),
    ] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Everything but training and sending.")] = False,
) -> None:
    """Take part: connect to the coordinator, outbound only, and answer its orders within site.toml.

    Whatever of it is killed goes on with the task that was open. SIGTERM or ^C ends it in order.
    """
    from not_fed.site.join import join

    join(home, root_sha256=root_sha256, rehearse=rehearse, say=_say_at)


def _say_at(message: str) -> None:
    """A line with its time, for a journal that has none of its own."""
    say(f"{datetime.now().astimezone():%H:%M:%S} {message}")


def _show_created(home: Path, created: CreatedSite, *, as_json: bool) -> None:
    invited, enrolled = created.invitation, created.enrolled
    result = {
        "schema": CREATED_SCHEMA, "folder": str(home), "name": created.identity.name,
        "fingerprint": created.identity.fingerprint, "enrolment": str(enrolled.enrolment),
        "enrolment_fingerprint": enrolled.fingerprint, "invitation_fingerprint": created.invitation_fingerprint,
        "coordinator": invited.coordinator, "federation": invited.federation, "address": invited.address,
        "policy": str(home / "site.toml"), "bundle": _bundle(invited),
    }  # fmt: skip
    lines = [
        ("folder", str(home)), ("name", created.identity.name), ("fingerprint", created.identity.fingerprint),
        ("invited by", f"{invited.coordinator} of {invited.federation}, at {invited.address}"),
        ("fingerprint", created.invitation_fingerprint), ("enrolment", str(enrolled.enrolment)),
        ("fingerprint", enrolled.fingerprint), ("policy", str(home / "site.toml")), ("bundle", result["bundle"]),
    ]  # fmt: skip
    show(result, as_json=as_json, lines=lines)
    if not as_json:
        say(f"{invited.coordinator} reads you the invitation's fingerprint over another channel: compare all of it")
        say(f"hand {enrolled.enrolment} to {invited.coordinator}, and read them its fingerprint")
        say(f"read {home / 'site.toml'} with whoever signs for the data, then: not-fed site join {home}")


def _bundle(invited: Invitation) -> str:
    """Whether the coordinator's bundle is the one that the installed not-fed would send."""
    import not_fed
    from not_fed.processes.bundle import expected_bundle_sha256

    if invited.bundle_sha256 == expected_bundle_sha256():
        return "as this version builds it"
    return f"another one than not-fed {not_fed.__version__} builds; {invited.coordinator} has {invited.not_fed}"
