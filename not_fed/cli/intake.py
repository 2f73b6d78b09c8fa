"""import: a stranger's organ into a copy of a model, after one question. `not-fed undo` takes it back."""

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
from not_fed.cli.options import BASE_HELP
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase
from not_fed.cli.progress import shown
from not_fed.cli.transplant import (
    AtOption,
    DifferentBaseOption,
    Mode,
    ModeOption,
    OriginOption,
    ScaleOption,
    StartOption,
    check_options,
    describe,
    fits,
    settings_of,
    way_of,
)
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.intake import IntakePlan
    from not_fed.trust.roster import TrustedRoster


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("import")(import_command)


def import_command(
    sealed: SealedFile,
    identity: IdentityOption,
    roster: RosterOption,
    into: Annotated[str, typer.Option("--into", help=BASE_HELP)],
    out: Annotated[Path | None, typer.Option("--out", help="The new model folder.")] = None,
    policy: PolicyOption = None,
    round_number: ExpectedRound = None,
    base_sha256: ExpectedBase = None,
    mode: ModeOption = Mode.REPLACE,
    at: AtOption = None,
    base: OriginOption = None,
    scale: ScaleOption = None,
    start: StartOption = None,
    accept_different_base: DifferentBaseOption = False,
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

    check_options(mode, base=base, scale=scale, overlap=None, start=start, accept_different_base=accept_different_base)
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
            way=lambda: way_of(mode, base=base, scale=scale, start=start, progress=progress),
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


def _show(plan: IntakePlan, roster: TrustedRoster, *, out: Path | None, as_json: bool) -> None:
    found = plan.verified
    result: dict[str, Any] = {
        "schema": "not-fed/imported/1", "out": None if out is None else str(out), "dry_run": out is None,
        "sender": found.sender, "author": found.author, "federation": found.federation, "round": found.round_number,
        **passport_facts(found.passport), **roster_facts(roster), "log": log_facts(found.logged),
        "policy": [demand.field for demand in found.demands], "mode": plan.way.mode, **settings_of(plan.way),
        "replaced": sorted(plan.graft.tensors) if plan.way.mode != "insert" else [],
        "inserted": sorted(plan.graft.tensors) if plan.way.mode == "insert" else [],
        "at": [plan.graft.at.start, plan.graft.at.stop], "exact": plan.graft.exact,
    }  # fmt: skip
    if out is None:
        lines = [*_lines(plan, roster), ("out", "dry run: nothing was written")]
    else:
        lines = [("model", str(out)), ("made by", str(found.author)), ("undo", f"not-fed undo {out} --out BASE")]
    show(result, as_json=as_json, lines=lines)


def _lines(plan: IntakePlan, roster: TrustedRoster) -> list[tuple[str, str]]:
    found, does = plan.verified, "inserts" if plan.way.mode == "insert" else "replaces"
    assert found.passport is not None, "planned with a key"
    return [
        ("sent by", f"{found.sender}, round {found.round_number} of {found.federation}"),
        *passport_lines(found.passport, roster),
        *trust_lines(roster, found.logged, found.demands, inside=True),
        ("into", f"{plan.base.folder}, as layers {plan.graft.at}{fits([plan.graft], plan.way) or ': fits exactly'}"),
        ("mode", describe(plan.way)),
        (does, f"{len(plan.graft.tensors)} tensors of a copy; the base stays as it is"),
    ]
