"""roster create, add, revoke, renew (a steward's), pin, update, show, check (everybody's)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.keys import PublicIdentity, Steward
    from not_fed.trust.roster import TrustedRoster

SCHEMA = "not-fed/roster/1"
RosterFolder = Annotated[Path, typer.Argument(metavar="R", help="The roster folder.")]
StewardFolder = Annotated[
    Path, typer.Option("--steward", help="Key folder of a steward (not-fed keys create --steward).")
]
ExpiresDays = Annotated[int, typer.Option("--expires-days", min=1, help="How long sites may rely on it unrenewed.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="Who belongs: signed by stewards, checked by every site.")
    for name, command in (
        ("create", create_command), ("add", add_command), ("revoke", revoke_command), ("renew", renew_command),
        ("pin", pin_command), ("update", update_command), ("show", show_command), ("check", check_command),
    ):  # fmt: skip
        group.command(name)(command)
    app.add_typer(group, name="roster")


def create_command(
    roster: RosterFolder,
    federation: Annotated[str, typer.Option("--federation", help="Its name.")],
    steward: StewardFolder,
    member: Annotated[
        list[str] | None, typer.Option("--member", help="identity.json:author,receiver; once for each member.")
    ] = None,
    expires_days: ExpiresDays = 90,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Start a federation's roster; this machine trusts it from then on, others pin its root."""
    from not_fed.trust.roster import create_roster, load_roster

    members = [_member(text) for text in member or []]
    key = _steward(steward, passphrase_file, passphrase_fd)
    create_roster(roster, federation=federation, steward=key, members=members, expires_in=timedelta(days=expires_days))
    _show(load_roster(roster, now=_now()), roster, as_json=as_json)


def add_command(
    roster: RosterFolder,
    member: Annotated[str, typer.Argument(help="identity.json:author,receiver")],
    steward: StewardFolder,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Enrol a member whose fingerprint you have compared."""
    from not_fed.trust.roster import add_member

    identity, roles = _member(member)
    key = _steward(steward, passphrase_file, passphrase_fd)
    _show(add_member(roster, identity=identity, roles=roles, steward=key), roster, as_json=as_json)


def revoke_command(
    roster: RosterFolder,
    name: Annotated[str, typer.Argument(help="The member.")],
    steward: StewardFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Take a member's trust away: whoever has the new roster refuses its organs."""
    from not_fed.trust.roster import revoke_member

    if not yes:
        typer.confirm(f"revoke {name}? everybody will refuse its organs, the old ones too", abort=True, err=True)
    key = _steward(steward, passphrase_file, passphrase_fd)
    _show(revoke_member(roster, name=name, steward=key), roster, as_json=as_json)


def renew_command(
    roster: RosterFolder,
    steward: StewardFolder,
    expires_days: ExpiresDays = 90,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Sign the same roster again with new dates; works on an expired one."""
    from not_fed.trust.roster import renew_roster

    key = _steward(steward, passphrase_file, passphrase_fd)
    _show(renew_roster(roster, steward=key, expires_in=timedelta(days=expires_days)), roster, as_json=as_json)


def pin_command(
    source: Annotated[Path, typer.Argument(help="A roster folder, or its repository.")],
    root_sha256: Annotated[str, typer.Option("--root-sha256", help="The root's digest, told by a steward.")],
    out: Annotated[Path, typer.Option("--out", help="The roster folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Start to trust a roster, by a digest that came over another channel."""
    from not_fed.trust.roster import load_roster, pin_roster

    pin_roster(source, root_sha256=root_sha256, out=out, now=_now())
    _show(load_roster(out, now=_now()), out, as_json=as_json)


def update_command(
    roster: RosterFolder,
    source: Annotated[Path, typer.Option("--from", help="A newer roster folder, or its repository.")],
    as_json: AsJson = False,
) -> None:
    """Take over a newer roster, if it holds; otherwise nothing changes."""
    from not_fed.trust.roster import update_roster

    _show(update_roster(roster, source=source, now=_now()), roster, as_json=as_json)


def show_command(roster: RosterFolder, as_json: AsJson = False) -> None:
    """Check a roster, and print its members with their fingerprints."""
    from not_fed.trust.roster import load_roster

    _show(load_roster(roster, now=_now()), roster, as_json=as_json)


def check_command(roster: RosterFolder, as_json: AsJson = False) -> None:
    """Check a roster as every command does, and say how long it holds."""
    from not_fed.trust.roster import load_roster

    _show(load_roster(roster, now=_now()), roster, as_json=as_json, with_members=False)


def _show(roster: TrustedRoster, folder: Path, *, as_json: bool, with_members: bool = True) -> None:
    from not_fed.canonical import format_time
    from not_fed.trust.roster import root_sha256

    now = _now()
    members: list[dict[str, Any]] = [
        {
            "name": member.name, "roles": sorted(member.roles), "not_after": format_time(member.not_after),
            "status": "active" if member.is_current(now) else "inactive", "fingerprint": member.fingerprint,
        }
        for member in roster.members.values()
    ]  # fmt: skip
    result: dict[str, Any] = {
        "schema": SCHEMA, "federation": roster.federation, "version": roster.version,
        "expires": format_time(roster.expires_at), "root_sha256": root_sha256(folder), "members": members,
        "recalls": len(roster.recalls),
    }  # fmt: skip
    lines = [
        ("federation", roster.federation), ("version", str(roster.version)), ("expires", result["expires"]),
        ("root sha256", result["root_sha256"]), ("recalled", f"{len(roster.recalls)} organs"),
    ]  # fmt: skip
    if with_members:
        for row in members:
            lines.append((row["name"], f"{row['status']}, {', '.join(row['roles'])}, until {row['not_after']}"))
            lines.append(("", row["fingerprint"]))
    else:
        lines.append(("members", str(sum(row["status"] == "active" for row in members))))
    show(result, as_json=as_json, lines=lines)


def _member(text: str) -> tuple[PublicIdentity, list[str]]:
    from not_fed.keys import load_public_identity

    path, colon, roles = text.rpartition(":")
    if not colon or not path:
        raise UsageError(
            where="--member", expected="identity.json:author,receiver", got="no roles", hint="roles come after a colon"
        )
    return load_public_identity(Path(path)), [role.strip() for role in roles.split(",")]


def _steward(folder: Path, file: Path | None, fd: int | None) -> Steward:
    from not_fed.keys import load_steward

    return load_steward(folder, passphrase=read_passphrase(file, fd))


def _now() -> datetime:
    return datetime.now(UTC)
