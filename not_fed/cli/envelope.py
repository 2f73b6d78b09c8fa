"""seal, verify, open: an organ on its way."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase

if TYPE_CHECKING:
    from not_fed.envelope import DpClaim, Expectation
    from not_fed.keys import Signer

RosterOption = Annotated[Path, typer.Option("--roster", help="The roster you trust. There is no default.")]
IdentityOption = Annotated[Path, typer.Option("--identity", help="Your key folder.")]
ExpectedRound = Annotated[int | None, typer.Option("--round", min=0, help="Refuse any other round.")]
ExpectedBase = Annotated[str | None, typer.Option("--base-sha256", help="Refuse an organ of any other base.")]
SealedFile = Annotated[Path, typer.Argument(metavar="S", help="A sealed organ.")]


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
    valid_days: Annotated[int, typer.Option("--valid-days", min=1, help="How long it may be opened.")] = 14,
    pad: Annotated[bool, typer.Option("--pad", help="Hide the exact size; at most 12 % larger.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Sign an organ and encrypt it to others; nobody else can open it, and nobody can change it."""
    from not_fed.envelope import seal_organ
    from not_fed.keys import load_signer
    from not_fed.trust.roster import load_roster

    now = datetime.now(UTC)
    trusted = load_roster(roster, now=now)
    signer = load_signer(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    named = federation or trusted.federation
    passport, round_number = _passport(organ, signer, federation=named, round_number=round_number, sharing=sharing)
    sealed = seal_organ(
        organ, passport=passport, sender=signer, roster=trusted, federation=named, round_number=round_number, out=out,
        recipients=[name for text in to for name in text.split(",")], now=now, ttl=timedelta(days=valid_days), pad=pad,
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
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Check a sealed organ and write nothing: its label without a key, everything with one."""
    from not_fed.envelope import verify_sealed
    from not_fed.keys import load_opener
    from not_fed.trust.roster import load_roster

    now = datetime.now(UTC)
    trusted = load_roster(roster, now=now)
    opener = None
    if identity is not None:
        opener = load_opener(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    found = verify_sealed(
        sealed, roster=trusted, now=now, label=_label(sealed), opener=opener, expect=_expect(round_number, base_sha256)
    )
    passport = found.passport
    result: dict[str, Any] = {
        "schema": "not-fed/verified/1", "trusted": True, "sender": found.sender, "author": found.author,
        "recipients": list(found.recipients), "federation": found.federation, "round": found.round_number,
        "organ_sha256": passport.organ_sha256 if passport else None,
        "base_sha256": passport.base_sha256 if passport else None, "span": list(passport.span) if passport else None,
        "epsilon": found.dp.epsilon if found.dp else None, "delta": found.dp.delta if found.dp else None,
        "unit": found.dp.unit if found.dp else None,
        "recalled": False if passport else None,  # a recalled organ is refused, so that nobody overlooks a field
    }  # fmt: skip
    lines = [("trusted", "yes" if passport else "yes, by its label; name --identity to look inside"),
             ("from", found.sender), ("to", ", ".join(found.recipients)),
             ("round", f"{found.round_number} of {found.federation}")]  # fmt: skip
    if passport is not None:
        start, stop = passport.span
        lines += [("author", passport.author), ("organ", f"{passport.family}, layers {start}:{stop}"),
                  ("base", passport.base_sha256), ("privacy", _privacy(passport.dp))]  # fmt: skip
    show(result, as_json=as_json, lines=lines)


def open_command(
    sealed: SealedFile,
    identity: IdentityOption,
    roster: RosterOption,
    out: Annotated[Path, typer.Option("--out", help="The organ file to write; its passport is written beside it.")],
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Check who made and who sent an organ, and only then write it."""
    from not_fed.envelope import open_organ
    from not_fed.keys import load_opener
    from not_fed.trust.roster import load_roster

    now = datetime.now(UTC)
    trusted = load_roster(roster, now=now)
    opener = load_opener(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    opened = open_organ(
        sealed, opener=opener, roster=trusted, out=out, now=now, label=_label(sealed),
        expect=_expect(round_number, base_sha256),
    )  # fmt: skip
    result = {
        "schema": "not-fed/opened/1", "sender": opened.sender, "author": opened.author, "organ": str(opened.organ),
        "organ_sha256": opened.organ_sha256, "passport": f"{opened.organ}.passport",
    }  # fmt: skip
    lines = [("organ", str(opened.organ)), ("from", opened.sender), ("author", opened.author),
             ("privacy", _privacy(opened.passport.dp))]  # fmt: skip
    show(result, as_json=as_json, lines=lines)


def _passport(
    organ: Path, signer: Signer, *, federation: str, round_number: int | None, sharing: Sharing
) -> tuple[bytes, int]:
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
        sharing=sharing.value,
    )  # fmt: skip
    return issue_passport(passport, signer=signer), passport.round


def _label(sealed: Path) -> bytes | None:
    from not_fed import files
    from not_fed.envelope import label_path
    from not_fed.envelope.label import MAX_LABEL_BYTES

    path = label_path(sealed)
    return files.read_regular(path, max_bytes=MAX_LABEL_BYTES + 1) if os.path.lexists(path) else None


def _expect(round_number: int | None, base_sha256: str | None) -> Expectation:
    from not_fed.envelope import Expectation

    return Expectation(round_number=round_number, base_sha256=base_sha256)


def _privacy(claim: DpClaim | None) -> str:
    if claim is None:
        return "no differential privacy claimed"
    return f"epsilon {claim.epsilon:.2f} at delta {claim.delta:g}, per {claim.unit}; claimed, not proved"
