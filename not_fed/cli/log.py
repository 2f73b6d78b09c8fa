"""log create, add, prove, consistency (the keeper's), show, check, compare (everybody's)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase

if TYPE_CHECKING:
    from not_fed.keys import LogSigner
    from not_fed.trust.log import SignedCheckpoint
    from not_fed.trust.roster import TrustedRoster

SCHEMA = "not-fed/log/1"
LogDir = Annotated[Path, typer.Argument(metavar="DIR", help="The log's folder.")]
Keeper = Annotated[Path, typer.Option("--identity", help="Key folder of the keeper (not-fed keys create --log).")]
RosterOption = Annotated[Path, typer.Option("--roster", help="The roster you trust. There is no default.")]
_RELATIONS = {
    "first": "the first that this site sees of this log; remember it with log compare",
    "same": "the one this site remembers",
    "unproven": "of another size than this site remembers; log compare settles it",
    "newer": "grown from what this site remembered; remembered from now on",
    "older": "an earlier state of what this site remembers",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        no_args_is_help=True, help="The log of seals, rosters and recalls: only grows, checked offline."
    )
    for name, command in (
        ("create", create_command), ("add", add_command), ("show", show_command), ("prove", prove_command),
        ("check", check_command), ("compare", compare_command), ("consistency", consistency_command),
    ):  # fmt: skip
        group.command(name)(command)
    app.add_typer(group, name="log")


def create_command(
    log: LogDir,
    identity: Keeper,
    federation: Annotated[str, typer.Option("--federation", help="Its name.")],
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Start an empty log; its folder can be copied or served as it is."""
    from not_fed.trust.log_folder import create_log

    signer = _signer(identity, passphrase_file, passphrase_fd)
    signed = create_log(log, federation=federation, signer=signer, now=_now())
    show(_fields(signed), as_json=as_json, lines=_lines(signed))


def add_command(
    log: LogDir,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Labels, recalls, rosters.")],
    identity: Keeper,
    roster: Annotated[
        Path | None, typer.Option("--roster", help="Also compare with what R remembers, and remember the new state.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Put digests of these files into the log, each once, and sign its new state."""
    from not_fed.trust.log import entry_of, keys_of_log, log_origin
    from not_fed.trust.log_folder import LogFolder, append_many
    from not_fed.trust.log_memory import append_remembered

    logged, now = [entry_of(path) for path in files], _now()
    leaves = [item.entry for item in logged]
    trusted = None if roster is None else _roster(roster)
    signer = _signer(identity, passphrase_file, passphrase_fd)
    if roster is None or trusted is None:
        places = append_many(log, leaves, signer=signer, now=now)
        folder = LogFolder(log)
        signed = folder.verify(keys=signer.public, origin=folder.checkpoint.origin, now=now)
    else:
        origin = log_origin(trusted.federation, signer.name)
        keys = keys_of_log(trusted, origin, now=now)
        signed, places = append_remembered(log, leaves, signer=signer, memory=roster, origin=origin, keys=keys, now=now)
    entries: list[dict[str, Any]] = [
        {"file": str(item.file), "kind": item.kind, "digest": item.digest, "index": place}
        for item, place in zip(logged, places, strict=True)
    ]
    rows = [(f"entry {row['index']}", f"{row['kind']} {row['digest']}, {row['file']}") for row in entries]
    show({**_fields(signed), "entries": entries}, as_json=as_json, lines=[*_lines(signed), *rows])


def show_command(
    source: Annotated[Path, typer.Argument(help="A log's folder, a checkpoint, or a proof.")],
    roster: RosterOption,
    as_json: AsJson = False,
) -> None:
    """Check the log's signatures, and of a folder every file; say what is known about it here."""
    from not_fed.trust.log import keys_of_log, verifier_keys
    from not_fed.trust.log_memory import confront
    from not_fed.trust.log_sources import read_source

    found, trusted, now = read_source(source), _roster(roster), _now()
    signed = found.verify(trusted, now=now)
    counts = None if found.folder is None else found.folder.audit()
    relation = confront(roster, signed)
    keys = verifier_keys(signed.origin, keys_of_log(trusted, signed.origin, now=now))
    lines = [*_lines(signed), ("this is", _RELATIONS[relation])]
    if counts is not None:
        lines.append(("entries", ", ".join(f"{count:,} {kind}" for kind, count in counts.items())))
    result = {**_fields(signed), "remembered": relation, "entries": counts, "verifier_keys": list(keys)}
    show(result, as_json=as_json, lines=lines)


def prove_command(
    log: LogDir,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A label, a recall, a roster.")],
    out: Annotated[Path | None, typer.Option("--out", help="Otherwise beside FILE; S.tlog-proof for S.label.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a proof that FILE is in the log; it travels with the sealed organ and is checked offline."""
    from not_fed.files import write_atomic
    from not_fed.trust.log import entry_of, proof_path, read_proof
    from not_fed.trust.log_folder import LogFolder

    logged, folder = entry_of(file), LogFolder(log)
    data = folder.proof(logged.entry)
    target = out or proof_path(file.with_suffix("") if file.suffix == ".label" else file)
    write_atomic(target, data, mode=0o644)
    index = read_proof(data).index
    result = {"schema": SCHEMA, "origin": folder.checkpoint.origin, "size": folder.checkpoint.size, "index": index,
              "kind": logged.kind, "digest": logged.digest, "proof": str(target)}  # fmt: skip
    show(result, as_json=as_json, lines=[("proof", str(target)), ("entry", f"{index} of {folder.checkpoint.size:,}")])


def check_command(
    proof: Annotated[Path, typer.Argument(help="S.tlog-proof")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What it should prove: S.label, a recall, a roster.")],
    roster: RosterOption,
    as_json: AsJson = False,
) -> None:
    """Check, offline, that a log of the roster contains FILE."""
    from not_fed.files import read_regular
    from not_fed.trust.log import MAX_PROOF_BYTES, check_proof, entry_of, read_proof
    from not_fed.trust.log_memory import confront

    data, logged = read_regular(proof, max_bytes=MAX_PROOF_BYTES), entry_of(file)
    signed = check_proof(data, entry=logged.entry, roster=_roster(roster), now=_now())
    relation, index = confront(roster, signed), read_proof(data).index
    result = {**_fields(signed), "logged": True, "kind": logged.kind, "digest": logged.digest, "index": index,
              "remembered": relation}  # fmt: skip
    lines = [("logged", f"yes, entry {index}"), *_lines(signed), ("checkpoint", _RELATIONS[relation])]
    show(result, as_json=as_json, lines=lines)


def compare_command(
    roster: Annotated[Path, typer.Argument(metavar="R", help="The roster folder, which remembers.")],
    source: Annotated[Path, typer.Argument(help="A log's folder, a checkpoint, or a proof.")],
    consistency: Annotated[
        Path | None,
        typer.Option("--consistency", help="What shows the growth: log consistency's file, or a log's folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a log with what this site remembers, and remember its new state; a fork is named and kept as evidence."""
    from not_fed.trust.log_sources import take_over

    done = take_over(roster, source, roster=_roster(roster), now=_now(), evidence=consistency)
    known = None if done.known is None else _fields(done.known)
    text = "the first that this site sees of this log; remembered" if known is None else _RELATIONS[done.relation]
    result = {**_fields(done.offered), "relation": done.relation, "known": known}
    show(result, as_json=as_json, lines=[*_lines(done.offered), ("this is", text)])


def consistency_command(
    log: LogDir,
    start: Annotated[int, typer.Option("--from", min=0, help="The size that the other side remembers.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a proof that the log grew from SIZE to what it is now, with its checkpoint: all that a site needs."""
    from not_fed.files import write_atomic
    from not_fed.trust.log_folder import LogFolder

    folder = LogFolder(log)
    write_atomic(out, folder.consistency_text(start), mode=0o644)
    size = folder.checkpoint.size
    result = {
        "schema": SCHEMA,
        "origin": folder.checkpoint.origin,
        "from": start,
        "size": size,
        "consistency": str(out),
    }
    show(result, as_json=as_json, lines=[("proof", str(out)), ("growth", f"{start:,} to {size:,} entries")])


def _fields(signed: SignedCheckpoint) -> dict[str, Any]:
    from not_fed.canonical import format_time

    return {"schema": SCHEMA, "origin": signed.origin, "size": signed.size, "root": signed.root.hex(),
            "issued": format_time(signed.issued)}  # fmt: skip


def _lines(signed: SignedCheckpoint) -> list[tuple[str, str]]:
    fields = _fields(signed)
    return [("log", fields["origin"]), ("size", f"{signed.size:,}"), ("root", fields["root"]),
            ("signed", f"{fields['issued']}, Ed25519 and ML-DSA-44")]  # fmt: skip


def _signer(folder: Path, file: Path | None, fd: int | None) -> LogSigner:
    from not_fed.keys import load_log_signer

    return load_log_signer(folder, passphrase=read_passphrase(file, fd))


def _roster(folder: Path) -> TrustedRoster:
    from not_fed.trust.roster import load_roster

    return load_roster(folder, now=_now())


def _now() -> datetime:
    return datetime.now(UTC)
