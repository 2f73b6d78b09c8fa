"""keys create, keys show, keys rotate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, PinFd, PinFile, read_passphrase, read_pin
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.keys import PublicIdentity, StewardIdentity
    from not_fed.keys.hsm import Token

SCHEMA = "not-fed/keys/1"
_COMPARE = """\b
Compare a fingerprint over another channel than the file came: by telephone, or on paper, with somebody whose voice or
face you know. One reads all 13 groups, the other follows on their own screen; then the other reads the last three back.
It has the letters a to z and the digits 2 to 7: what sounds like a zero is an o, what looks like a one is an l or an i.
One letter that differs means other keys: enrol nobody, and find out whose they are."""


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="A site's keys: make them, show the public half, renew them.")
    group.command("create")(create_command)
    group.command("show", epilog=_COMPARE)(show_command)
    group.command("rotate")(rotate_command)
    app.add_typer(group, name="keys")


def create_command(
    name: Annotated[str, typer.Argument(help="What the site is called on rosters.")],
    out: Annotated[Path, typer.Option("--out", help="The key folder to make.")],
    steward: Annotated[bool, typer.Option("--steward", help="Add roster.key, to create and change rosters.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Add log.key, to sign the checkpoints of a log.")] = False,
    hsm: Annotated[
        str | None,
        typer.Option(
            "--hsm", metavar="URI",
            help="Make the Ed25519 signing key in a PKCS#11 token, to stay there: "
            "'pkcs11:token=LABEL?module-path=/usr/lib/softhsm/libsofthsm2.so'. Its ML-DSA-65 partner and all other "
            "keys stay in the folder, because tokens know no ML-DSA yet.",
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    pin_file: PinFile = None,
    pin_fd: PinFd = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make signing and sealing keys under a passphrase, and an identity.json to hand out."""
    from not_fed.keys import create_keys

    token = _token(hsm, pin_file, pin_fd)
    secret = read_passphrase(passphrase_file, passphrase_fd, confirm=True)
    create_keys(out, name=name, passphrase=secret, steward=steward, log=log, token=token)
    _show(_load(out), as_json=as_json, more={"folder": str(out)}, lines=[("folder", str(out))])


def show_command(
    source: Annotated[Path, typer.Argument(help="A key folder, an identity.json or a steward.json.")],
    as_json: AsJson = False,
) -> None:
    """Check an identity, and print the fingerprint to compare over another channel."""
    _show(_load(source), as_json=as_json)


def rotate_command(
    folder: Annotated[Path, typer.Argument(metavar="F", help="The key folder.")],
    keep_days: Annotated[
        int, typer.Option("--keep-days", min=0, max=3650, help="How long a retired sealing key still opens old organs.")
    ] = 90,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Make new signing and sealing keys; the old ones sign for the new, and a steward enrols them with that."""
    from not_fed.canonical import format_time
    from not_fed.keys import load_public_identity, rotate_keys

    name = load_public_identity(folder).name
    if not yes:
        old = f"old organs open for {keep_days} more days" if keep_days else "old organs can no longer be opened"
        typer.confirm(f"new keys for {name}? the old signing key is destroyed, {old}", abort=True, err=True)
    secret = read_passphrase(passphrase_file, passphrase_fd)
    done = rotate_keys(folder, passphrase=secret, keep=timedelta(days=keep_days))
    send = [str(folder / file) for file in ("identity.json", "succession.json")]
    result = {
        "old_fingerprint": done.old.fingerprint, "kept": [format_time(time) for time in done.kept],
        "destroyed": {"signing": 1, "sealing": done.destroyed}, "send": send,
    }  # fmt: skip
    kept = f"{len(done.kept)} retired sealing key(s), for at most {keep_days} days; not-fed keys rotate removes them"
    lines = [
        ("kept", kept if done.kept else "no retired sealing key"),
        ("destroyed", f"the old signing key, {done.destroyed} retired sealing key(s)"),
        ("send", f"{send[0]} and {send[1]} to a steward"),
        ("", "who enrols them: not-fed roster rotate R identity.json --succession succession.json"),
    ]
    _show(_load(folder), as_json=as_json, more=result, lines=lines)


def _token(uri: str | None, pin_file: Path | None, pin_fd: int | None) -> Token | None:
    if uri is None:
        if pin_file is not None or pin_fd is not None:
            raise UsageError(where="--pin-file", expected="--hsm URI with it", got="no token", hint="name the token")
        return None
    from not_fed.keys.hsm import Token
    from not_fed.keys.token_uri import read_token_uri

    parsed, pin = read_token_uri(uri)
    if pin is not None or parsed.object_id is not None:
        raise UsageError(
            where="--hsm", expected="a token and its module", got="a PIN on the command line" if pin else "a key's id",
            hint="others on this machine can read a command line; use --pin-file or --pin-fd, and choose another PIN",
        )  # fmt: skip
    return Token(parsed, read_pin(pin_file, pin_fd))


def _load(source: Path) -> tuple[PublicIdentity | None, StewardIdentity | None]:
    """What there is to see in a folder or a file: a site's identity, a steward's, or both."""
    from not_fed.keys import MalformedSigned, load_public_identity, load_steward_identity

    if os.path.isdir(source):  # noqa: PTH112  Path.is_dir raises on odd names
        steward = load_steward_identity(source) if os.path.lexists(source / "steward.json") else None
        return load_public_identity(source), steward
    try:
        return load_public_identity(source), None
    except MalformedSigned as no_site:
        try:
            return None, load_steward_identity(source)
        except MalformedSigned:
            raise no_site from None


def _show(
    found: tuple[PublicIdentity | None, StewardIdentity | None], *, as_json: bool,
    more: Mapping[str, Any] | None = None, lines: Iterable[tuple[str, str]] = (),
) -> None:  # fmt: skip
    from not_fed.canonical import format_time

    identity, steward = found
    result: dict[str, Any] = {"schema": SCHEMA}
    rows: list[tuple[str, str]] = []
    if identity:
        created = format_time(identity.created)
        result |= {
            "name": identity.name, "fingerprint": identity.fingerprint, "recipient": identity.seal, "created": created,
            "keeps_log": identity.log is not None,
        }  # fmt: skip
        rows += [("name", identity.name), ("fingerprint", identity.fingerprint), ("created", created)]
    if steward:
        created = format_time(steward.created)
        result["steward"] = {"name": steward.name, "fingerprint": steward.fingerprint, "created": created}
        rows += [("steward", steward.name), ("fingerprint", steward.fingerprint), ("created", created)]
    show(result | dict(more or {}), as_json=as_json, lines=[*rows, *lines])
