"""import, undo: a stranger's organ into a copy of a model, after one question; and back."""

from __future__ import annotations

from datetime import UTC, datetime
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
    roster_facts,
    trust_lines,
    trusted_roster,
    waybill_memory,
)
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.intake import IntakePlan
    from not_fed.trust.roster import TrustedRoster


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("import")(import_command)
    app.command("undo")(undo_command)


def import_command(
    sealed: SealedFile,
    identity: IdentityOption,
    roster: RosterOption,
    into: Annotated[str, typer.Option("--into", help="Model folder, hub id, or smollm2-135m.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new model folder.")] = None,
    policy: PolicyOption = None,
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    at: Annotated[
        int | None, typer.Option("--at", min=0, help="First layer of its place. [default: where it was cut]")
    ] = None,
    accept_different_base: Annotated[
        bool, typer.Option("--accept-different-base", help="The layers there may differ from those it was cut from.")
    ] = False,
    accept_stale: AcceptStale = False,
    again: Again = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and plan; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Verify a sealed organ, see whether it fits, ask once, and transplant it into a copy of a model."""
    from not_fed.envelope import find_delivery
    from not_fed.keys import load_opener
    from not_fed.organ.intake import apply_intake, plan_intake
    from not_fed.resources.bases import find_base

    if out is None and not dry_run:
        raise UsageError(where="not-fed import", expected="--out, or --dry-run", got="neither", hint="add --out DIR")
    trusted, delivery = trusted_roster(roster, accept_stale=accept_stale), find_delivery(sealed)
    confront_log(roster, delivery, trusted)
    expect = expectation(round_number, base_sha256, policy)
    opener = load_opener(identity, passphrase=read_passphrase(passphrase_file, passphrase_fd))
    seen, now = waybill_memory(roster, again=again), datetime.now(UTC)
    with shown() as progress:
        plan = plan_intake(
            delivery, into=lambda: find_base(into, progress=progress), opener=opener, roster=trusted,
            now=now, expect=expect, seen=seen, at=at, accept_different_base=accept_different_base,
        )  # fmt: skip
    if out is None or dry_run:
        _show(plan, trusted, out=None, as_json=as_json)
        return
    if not yes:
        for label, value in _lines(plan, trusted):
            say(f"{label:<9} {value}")
        typer.confirm(f"take this organ in, as {out}?", abort=True, err=True)
    with shown() as progress:
        apply_intake(plan, out=out, now=now, seen=seen, progress=progress)
    _show(plan, trusted, out=out, as_json=as_json)


def undo_command(
    model: Annotated[Path, typer.Argument(help="A model folder that import or transplant wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Where the base model is written, as it was before.")],
    as_json: AsJson = False,
) -> None:
    """Put back the layers that an organ replaced; the result is checked to be the base, bit for bit."""
    from not_fed.organ.transplant import undo_transplant

    with shown() as progress:
        base_sha256 = undo_transplant(model, out=out, progress=progress)
    result = {"schema": "not-fed/undone/1", "model": str(model), "out": str(out), "base_sha256": base_sha256}
    show(result, as_json=as_json, lines=[("out", str(out)), ("base", f"{base_sha256}, bit for bit")])


def _show(plan: IntakePlan, roster: TrustedRoster, *, out: Path | None, as_json: bool) -> None:
    found = plan.verified
    result: dict[str, Any] = {
        "schema": "not-fed/imported/1", "out": None if out is None else str(out), "dry_run": out is None,
        "sender": found.sender, "author": found.author, "federation": found.federation, "round": found.round_number,
        **passport_facts(found.passport), **roster_facts(roster), "log": log_facts(found.logged),
        "policy": [demand.field for demand in found.demands], "mode": "replace", "replaced": list(plan.replaced),
        "at": [plan.fit.at.start, plan.fit.at.stop], "exact": plan.fit.exact,
    }  # fmt: skip
    if out is None:
        lines = [*_lines(plan, roster), ("out", "dry run: nothing was written")]
    else:
        lines = [("model", str(out)), ("made by", str(found.author)), ("undo", f"not-fed undo {out} --out BASE")]
    show(result, as_json=as_json, lines=lines)


def _lines(plan: IntakePlan, roster: TrustedRoster) -> list[tuple[str, str]]:
    found, fits = plan.verified, "exactly" if plan.fit.exact else "by shape; NOT the layers that it was cut from"
    assert found.passport is not None, "planned with a key"
    return [
        ("sent by", f"{found.sender}, round {found.round_number} of {found.federation}"),
        *passport_lines(found.passport, roster),
        *trust_lines(roster, found.logged, found.demands, inside=True),
        ("into", f"{plan.base.folder}, layers {plan.fit.at}: fits {fits}"),
        ("replaces", f"{len(plan.replaced)} tensors of a copy; the base stays as it is"),
    ]
