"""recall: withdraw an organ for ever, take such a word over, look one up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.ceremony import Instead, Yes, ask, decide
from not_fed.cli.delivery import AcceptStale, trusted_roster
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase
from not_fed.errors import NotFedError, TrustError, UsageError

if TYPE_CHECKING:
    from not_fed.keys import Opener, Secret
    from not_fed.trust.roster import Recall, TrustedRoster

RECALLED_SCHEMA = "not-fed/recalled/1"
CHECK_SCHEMA = "not-fed/recall-check/1"
_SEALED = b"age-encryption.org/v1\n"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
RosterOption = Annotated[Path, typer.Option("--roster", help="The roster you trust. There is no default.")]
What = Annotated[str, typer.Argument(metavar="ORGAN|DIGEST", help="An organ file, its passport, or its SHA-256.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="Withdraw an organ: by its author, or by the stewards.")
    for name, command in (("issue", issue_command), ("add", add_command), ("check", check_command)):
        group.command(name)(command)
    app.add_typer(group, name="recall")


def issue_command(
    organ: What,
    reason: Annotated[str, typer.Option("--reason", help="Why; everybody will read it.")],
    roster: RosterOption,
    identity: Annotated[Path | None, typer.Option("--identity", help="Your key folder: it is your organ.")] = None,
    steward: Annotated[Path | None, typer.Option("--steward", help="A steward's key folder: whoever made it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write an author's withdrawal here, to be mailed.")] = None,
    expires_days: Annotated[
        int, typer.Option("--expires-days", min=1, max=3650, help="As in roster add; for --steward.")
    ] = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw an organ, with the reason. It cannot be taken back."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import moment_of, recalling

    if (identity is None) == (steward is None) or (steward is not None and out is not None):
        raise UsageError(
            where="recall issue", expected="--identity KEYS [--out FILE], or --steward KEYS", got="another combination",
            hint="an author withdraws its own organ; stewards withdraw anybody's",
        )  # fmt: skip
    secret = cache(lambda: read_passphrase(passphrase_file, passphrase_fd))  # a descriptor can be read once
    digest = _find(organ, _opener(identity, secret), trusted_roster(roster, accept_stale=True))[0]
    question = f"withdraw {digest[:16]}...? nobody will open it again, and that cannot be taken back"
    if steward is not None:
        edit = recalling(digest, reason=reason, now=moment_of(None))
        decide(
            propose(roster, edit, now=moment_of(None), expires_in=timedelta(days=expires_days)), steward=steward,
            yes=yes, question=question, instead=instead, passphrase=(passphrase_file, passphrase_fd),
            as_json=as_json,
        )  # fmt: skip
    elif identity is not None:
        ask(question, yes=yes)
        _withdraw(roster, digest, reason, identity, out, secret(), as_json=as_json)


def add_command(
    roster: Annotated[Path, typer.Argument(metavar="R", help="The roster folder.")],
    recall: Annotated[Path, typer.Argument(metavar="FILE", help="An author's withdrawal (FILE.recall).")],
    as_json: AsJson = False,
) -> None:
    """Take over a withdrawal that came by mail; R/repository carries it on."""
    from not_fed import files
    from not_fed.trust.recall import MAX_RECALL_BYTES
    from not_fed.trust.roster import add_withdrawal

    line = files.read_regular(recall, max_bytes=MAX_RECALL_BYTES + 1)
    withdrawal = add_withdrawal(roster, line, now=datetime.now(UTC))
    _show(RECALLED_SCHEMA, withdrawal.recall, as_json=as_json, file=str(recall))


def check_command(
    organ: Annotated[
        str, typer.Argument(metavar="F|S|DIGEST", help="An organ file, its passport, a sealed organ, or a SHA-256.")
    ],
    roster: RosterOption,
    identity: Annotated[Path | None, typer.Option("--identity", help="Your key folder, to look into S.")] = None,
    accept_stale: AcceptStale = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Is it withdrawn, by this roster? Exit code 6 if so."""
    trusted = trusted_roster(roster, accept_stale=accept_stale)
    secret = cache(lambda: read_passphrase(passphrase_file, passphrase_fd))
    digest, author = _find(organ, _opener(identity, secret), trusted)
    found = _recall(trusted, digest, author)
    facts = {"roster_version": trusted.version, "roster_stale": trusted.stale}
    if found is None:
        result = {"schema": CHECK_SCHEMA, "recalled": False, "organ_sha256": digest, "reason": None, "by": None,
                  "when": None, **facts}  # fmt: skip
        show(result, as_json=as_json, lines=[("recalled", f"no, by roster version {trusted.version}")])
        return
    _show(CHECK_SCHEMA, found, as_json=as_json, recalled=True, **facts)
    raise typer.Exit(TrustError.exit_code)


def _find(organ: str, opener: Callable[[], Opener], roster: TrustedRoster) -> tuple[str, str | None]:
    """Digest, and the author where a passport is at hand that this author signed for this organ.

    Without such a passport the author is unknown, and any withdrawal counts: a false passport hides none.
    """
    from not_fed import files
    from not_fed.envelope import passport_path

    path = Path(organ)
    if _DIGEST.fullmatch(organ) and not os.path.lexists(path):
        return organ.lower(), None
    if path.name.endswith(".passport"):
        return _named_in(_line_at(path), roster)
    with files.open_regular(path) as file:
        is_sealed = file.read(len(_SEALED)) == _SEALED
    if is_sealed:
        return _named_in(_line_inside(path, opener()), roster)
    beside, digest = passport_path(path), files.sha256(path)
    named = _named_in(_line_at(beside), roster) if os.path.lexists(beside) else (digest, None)
    return digest, named[1] if named[0] == digest else None


def _line_at(path: Path) -> bytes:
    from not_fed import files
    from not_fed.envelope.passport import MAX_PASSPORT_BYTES

    return files.read_regular(path, max_bytes=MAX_PASSPORT_BYTES + 1).removesuffix(b"\n")


def _named_in(line: bytes, roster: TrustedRoster) -> tuple[str, str | None]:
    """The organ that a passport is about, and its author if the author signed it."""
    from not_fed.envelope.passport import parse_passport, read_passport

    digest = parse_passport(line)[1].organ_sha256
    try:
        return digest, read_passport(line, roster=roster, now=datetime.now(UTC)).author
    except NotFedError:
        return digest, None


def _line_inside(path: Path, opener: Opener) -> bytes:
    from not_fed import files
    from not_fed.age import StreamReader, read_header
    from not_fed.age.stream import NONCE_BYTES
    from not_fed.envelope.frame import read_frame

    with files.open_regular(path) as file:
        header = read_header(file)
        payload_bytes = os.fstat(file.fileno()).st_size - header.size_bytes - NONCE_BYTES
        reader = StreamReader(file, file_key=opener.unwrap(header), payload_bytes=payload_bytes)
        return read_frame(reader).passport


def _opener(identity: Path | None, passphrase: Callable[[], Secret]) -> Callable[[], Opener]:
    """Loads the key that looks into a sealed organ, when that is needed."""
    from not_fed.keys import load_opener

    def load() -> Opener:
        if identity is None:
            raise UsageError(
                where="recall", expected="--identity KEYS with a sealed organ", got="none",
                hint="which organ it is stands inside; or give its digest",
            )  # fmt: skip
        return load_opener(identity, passphrase=passphrase())

    return load


def _recall(roster: TrustedRoster, digest: str, author: str | None) -> Recall | None:
    """The recall that counts; where the author is unknown, any: whoever asks about a bare digest should hear of it."""
    found = sorted(roster.recalled.get(digest, ()), key=lambda recall: recall.by is not None)
    counting = [recall for recall in found if author is None or recall.by in (None, author)]
    return counting[0] if counting else None


def _withdraw(
    roster: Path, digest: str, reason: str, identity: Path, out: Path | None, secret: Secret, *, as_json: bool
) -> None:
    from not_fed import files
    from not_fed.keys import load_signer
    from not_fed.trust.recall import sign_withdrawal
    from not_fed.trust.roster import add_withdrawal

    now = datetime.now(UTC)
    trusted = trusted_roster(roster, accept_stale=True)
    signer = load_signer(identity, passphrase=secret)
    line = sign_withdrawal(signer, federation=trusted.federation, organ_sha256=digest, reason=reason, now=now)
    if out is not None:
        files.write_atomic(out, line + b"\n", mode=0o644)
    withdrawal = add_withdrawal(roster, line, now=now)
    place = out or roster / "repository" / "recalls" / f"{withdrawal.line_sha256}.recall"
    _show(RECALLED_SCHEMA, withdrawal.recall, as_json=as_json, file=str(place))
    if not as_json:
        say("send that file to every member (not-fed recall add R FILE), and ask the stewards to recall it as well")


def _show(schema: str, recall: Recall, *, as_json: bool, **more: Any) -> None:  # noqa: ANN401  what JSON has
    from not_fed.canonical import format_time

    result = {
        "schema": schema, "organ_sha256": recall.organ_sha256, "reason": recall.reason,
        "by": recall.by or "stewards", "when": format_time(recall.time), **more,
    }  # fmt: skip
    lines = [("recalled", f"yes, by {result['by']}"), ("organ", recall.organ_sha256), ("reason", recall.reason),
             ("when", result["when"])]  # fmt: skip
    lines += [("file", str(more["file"]))] if "file" in more else []
    show(result, as_json=as_json, lines=lines)
