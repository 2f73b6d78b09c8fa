"""seal, verify, open: an organ on its way."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.delivery import (
    AcceptStale,
    Again,
    ExpectedBase,
    ExpectedRound,
    IdentityOption,
    PolicyOption,
    RosterOption,
    SealedFile,
    confront_log,
    expectation,
    log_facts,
    passport_facts,
    passport_lines,
    privacy_words,
    roster_facts,
    trust_lines,
    trusted_roster,
    waybill_memory,
)
from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase

if TYPE_CHECKING:
    from not_fed.keys import Signer


class Sharing(StrEnum):
    """Who may have the organ."""

    ADDRESSEES = "addressees"
    FEDERATION = "federation"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("seal")(seal_command)
    app.command("verify")(verify_command)
    app.command("open")(open_command)


def seal_command(
    organ: Annotated[Path, typer.Argument(metavar="F", help="An organ file.")],
    to: Annotated[list[str], typer.Option("--to", help="A site on the roster; once for each, or with commas.")],
    identity: IdentityOption,
    roster: RosterOption,
    out: Annotated[Path, typer.Option("--out", help="The sealed file to write; its label is written beside it.")],
    federation: Annotated[str | None, typer.Option("--federation", help="Its name. [default: the roster's]")] = None,
    round_number: Annotated[int | None, typer.Option("--round", min=0, help="0 outside of rounds.")] = None,
    sharing: Annotated[Sharing, typer.Option("--sharing", help="Who may have it.")] = Sharing.ADDRESSEES,
    valid_days: Annotated[int, typer.Option("--valid-days", min=1, max=92, help="How long it may be opened.")] = 14,
    pad: Annotated[bool, typer.Option("--pad", help="Hide the exact size; at most 12 % larger.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Sign an organ and encrypt it to others; nobody else can open it, and nobody can change it."""
    from not_fed.envelope import seal_organ
    from not_fed.keys import load_signer
    from not_fed.snapshots import take_snapshot
    from not_fed.trust.roster import load_roster

    now = datetime.now(UTC)
    trusted = load_roster(roster, now=now)
    signer = load_signer(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    named = federation or trusted.federation
    snapshot = take_snapshot(organ)  # known since it was trained, or computed here: once either way
    passport, round_number = _passport(
        organ, signer, federation=named, round_number=round_number, sharing=sharing, organ_sha256=snapshot.sha256
    )
    sealed = seal_organ(
        organ, passport=passport, sender=signer, roster=trusted, federation=named, round_number=round_number, out=out,
        recipients=[name for text in to for name in text.split(",")], now=now, ttl=timedelta(days=valid_days), pad=pad,
        snapshot=snapshot,
    )  # fmt: skip
    result: dict[str, Any] = {
        "schema": "not-fed/sealed/1", "sealed": str(sealed.path), "label": f"{sealed.path}.label",
        "sender": signer.name, "recipients": list(sealed.recipients), "federation": named, "round": round_number,
        "organ_sha256": sealed.organ_sha256, "sealed_sha256": sealed.sha256, "size_bytes": sealed.size_bytes,
        "expires": f"{sealed.expires:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    lines = [("sealed", f"{sealed.path} ({sealed.size_bytes:,} bytes)"), ("label", result["label"]),
             ("from", signer.name), ("to", ", ".join(sealed.recipients)), ("until", result["expires"])]  # fmt: skip
    show(result, as_json=as_json, lines=lines)


def verify_command(
    sealed: SealedFile,
    roster: RosterOption,
    identity: Annotated[Path | None, typer.Option("--identity", help="Your key folder, to look inside.")] = None,
    policy: PolicyOption = None,
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    accept_stale: AcceptStale = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Why should I trust this file? Checks it offline and writes nothing: the label without a key, all with one."""
    from not_fed.envelope import find_delivery, verify_sealed
    from not_fed.keys import load_opener

    trusted, delivery = trusted_roster(roster, accept_stale=accept_stale), find_delivery(sealed)
    confront_log(roster, delivery, trusted)
    expect, opener = expectation(round_number, base_sha256, policy), None
    if identity is not None:
        opener = load_opener(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    found = verify_sealed(
        sealed, roster=trusted, now=datetime.now(UTC), label=delivery.label, proof=delivery.proof, opener=opener,
        expect=expect,
    )  # fmt: skip
    passport = found.passport
    result: dict[str, Any] = {
        "schema": "not-fed/verified/1", "trusted": True, "sender": found.sender, "author": found.author,
        "recipients": list(found.recipients), "federation": found.federation, "round": found.round_number,
        **passport_facts(passport),
        "recalled": False if passport else None,  # a recalled organ is refused, so that nobody overlooks a field
        **roster_facts(trusted), "log": log_facts(found.logged),
        "policy": None if policy is None else [demand.field for demand in found.demands],
    }  # fmt: skip
    lines = [
        ("trusted", "yes" if passport else "yes, by its label; name --identity to look inside"),
        ("sent by", f"{found.sender}, round {found.round_number} of {found.federation}"),
        ("for", ", ".join(found.recipients)),
        *(passport_lines(passport, trusted) if passport else []),
        *trust_lines(trusted, found.logged, found.demands, inside=passport is not None),
    ]
    show(result, as_json=as_json, lines=lines)


def open_command(
    sealed: SealedFile,
    identity: IdentityOption,
    roster: RosterOption,
    out: Annotated[Path, typer.Option("--out", help="The organ file to write; its passport is written beside it.")],
    policy: PolicyOption = None,
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    accept_stale: AcceptStale = False,
    again: Again = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Check who made and who sent an organ, and only then write it."""
    from not_fed.envelope import find_delivery, open_organ
    from not_fed.keys import load_opener
    from not_fed.snapshots import note_written

    trusted, delivery = trusted_roster(roster, accept_stale=accept_stale), find_delivery(sealed)
    confront_log(roster, delivery, trusted)
    expect = expectation(round_number, base_sha256, policy)
    opener = load_opener(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    opened = open_organ(
        sealed, opener=opener, roster=trusted, out=out, now=datetime.now(UTC), label=delivery.label,
        proof=delivery.proof, expect=expect, seen=waybill_memory(roster, again=again),
    )  # fmt: skip
    note_written(opened.organ, opened.organ_sha256)
    result = {
        "schema": "not-fed/opened/1", "sender": opened.sender, "author": opened.author, "organ": str(opened.organ),
        "organ_sha256": opened.organ_sha256, "passport": f"{opened.organ}.passport", **roster_facts(trusted),
        "log": log_facts(opened.logged),
    }  # fmt: skip
    lines = [("organ", str(opened.organ)), ("sent by", opened.sender), ("made by", opened.author),
             ("privacy", privacy_words(opened.passport))]  # fmt: skip
    show(result, as_json=as_json, lines=lines)


def _passport(
    organ: Path, signer: Signer, *, federation: str, round_number: int | None, sharing: Sharing, organ_sha256: str
) -> tuple[bytes, int]:  # fmt: skip
    """The passport to seal with and its round: another author's, when it lies beside the organ, else a new one."""
    from not_fed import files
    from not_fed.envelope import issue_passport, new_passport, passport_path
    from not_fed.envelope.passport import MAX_PASSPORT_BYTES, parse_passport

    if os.path.lexists(passport_path(organ)):
        line = files.read_regular(passport_path(organ), max_bytes=MAX_PASSPORT_BYTES + 1).removesuffix(b"\n")
        known = parse_passport(line)[1]
        if known.author != signer.name:
            return line, known.round if round_number is None else round_number
    passport = new_passport(
        organ, author=signer.name, federation=federation, round_number=round_number or 0, now=datetime.now(UTC),
        sharing=sharing.value, organ_sha256=organ_sha256,
    )  # fmt: skip
    return issue_passport(passport, signer=signer), passport.round
