"""Take a sealed organ in: verify, look whether it fits, and only after a yes open it and transplant it.

Plan and apply, as for every transplant. The plan decrypts in constant memory and writes nothing at all, so that a
person can say no before any weight of a stranger is on the disk. Applying opens the organ inside the new model's folder
while that folder has no name yet, and keeps the passport, label and proof in it as the model's papers. The organ's own
file is deleted as soon as its tensors are in their place. What a kill leaves is a hidden `.part` folder of mode 0700
beside the new model, which may hold the organ and half a model; the next command that makes a folder there deletes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from not_fed import canonical, files
from not_fed.envelope.checks import Expectation
from not_fed.envelope.delivery import Delivery
from not_fed.envelope.open import Opened, Verified, open_organ, passport_path, verify_sealed
from not_fed.envelope.seen import CheckOnly, SeenWaybills
from not_fed.errors import TrustError
from not_fed.keys import Opener
from not_fed.organ.checkpoint import Base
from not_fed.organ.claims import check_claim
from not_fed.organ.organ import organ_of, read_organ
from not_fed.organ.transplant import (
    NOTES,
    Delta,
    Graft,
    Replace,
    Way,
    fit_graft,
    plan_transplant,
    record_transplant,
    write_transplant,
)
from not_fed.organ.transplant.copying import check_unchanged, state_of
from not_fed.progress import Progress, silent
from not_fed.trust.members import TrustedRoster

PAPERS = "verified.json"
SCHEMA = "not-fed/intake-record/1"


class ChangedSinceVerified(TrustError):
    """The sealed file is another than the one that was verified."""

    code = "changed-since-verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakePlan:
    """What was verified, and where the organ would go; nothing was written.

    Attributes:
        graft: the organ in its place, as far as its header tells.
        at: first layer of its place, or None for where it was cut.
        states: size and modification time of the models' weight files.
    """

    delivery: Delivery
    verified: Verified
    base: Base = field(repr=False)
    way: Way
    graft: Graft = field(repr=False)
    at: int | None
    accept_different_base: bool
    expect: Expectation
    roster: TrustedRoster = field(repr=False)
    opener: Opener = field(repr=False)
    states: Mapping[Path, tuple[int, int]] = field(repr=False)


def plan_intake(
    delivery: Delivery, *, into: Callable[[], Base], opener: Opener, roster: TrustedRoster, now: datetime,
    expect: Expectation, seen: SeenWaybills, at: int | None = None, accept_different_base: bool = False,
    way: Callable[[], Way] = Replace,
) -> IntakePlan:  # fmt: skip
    """Verify everything, and only then look for the base and check the fit.

    Args:
        into, way: find the base, and how the organ is put in, which may have to find another base; called once the
            sealed organ is known to be trusted.
    Raises:
        all that `verify_sealed`, `check_claim` and `fit_graft` raise; WaybillReplayed when it was taken in before.
    Guarantees: nothing is written, whatever the outcome.
    Proved by: tests/journeys/test_import.py::test_saying_no_leaves_nothing_behind
    """
    verified = verify_sealed(
        delivery.sealed, roster=roster, now=now, label=delivery.label, proof=delivery.proof, opener=opener,
        expect=expect, seen=seen,
    )  # fmt: skip
    assert verified.header is not None, "verified with a key"
    assert verified.passport is not None, "verified with a key"
    check_claim(verified.passport.dp)
    organ, base, how = organ_of(verified.header, path=delivery.sealed), into(), way()
    models = (base, how.origin) if isinstance(how, Delta) else (base,)
    states = {path: state_of(path) for path in {place.file for model in models for place in model.places.values()}}
    graft = fit_graft(organ, base=base, at=at, accept_different_base=accept_different_base, way=how)
    return IntakePlan(
        delivery=delivery, verified=verified, base=base, way=how, graft=graft, at=at,
        accept_different_base=accept_different_base, expect=expect, roster=roster, opener=opener,
        states=states,
    )  # fmt: skip


def apply_intake(
    plan: IntakePlan, *, out: Path, now: datetime, seen: SeenWaybills, progress: Progress = silent
) -> Opened:
    """Open the organ and write the new model; `out` appears whole or not at all.

    Raises:
        ChangedSinceVerified: the file was replaced after the plan. WaybillReplayed: somebody else took it in
        meanwhile. OutputExists, NoSpace.
        ChangedSincePlan: a model's file is another than when the fit was settled.
        NothingLearned, DeltaOverflows: of a delta; only the organ's own numbers can tell.
    Proved by: tests/journeys/test_import.py::test_a_base_that_changes_while_a_person_thinks_gets_nothing
    """
    check_unchanged(plan.states)
    with ExitStack() as undo:
        with files.new_folder(out) as part:
            opened = _open(plan, part, now=now, seen=seen)
            organ = read_organ(opened.organ)
            transplant = plan_transplant(
                organ=organ, base=plan.base, at=plan.at, accept_different_base=plan.accept_different_base, way=plan.way
            )
            write_transplant(transplant, part, progress=progress)
            opened.organ.unlink()
            record_transplant(transplant, part, organs_sha256=[opened.organ_sha256])
            _file_papers(plan, part / NOTES, opened, now=now)
        undo.callback(shutil.rmtree, out, ignore_errors=True)
        seen.record(opened.waybill_key, opened.expires)
        undo.pop_all()
    return opened


def _open(plan: IntakePlan, part: Path, *, now: datetime, seen: SeenWaybills) -> Opened:
    (part / NOTES).mkdir(mode=0o700)
    opened = open_organ(
        plan.delivery.sealed, opener=plan.opener, roster=plan.roster, out=part / NOTES / "organ", now=now,
        expect=plan.expect, label=plan.delivery.label, proof=plan.delivery.proof, seen=CheckOnly(seen),
    )  # fmt: skip
    if plan.verified.passport is None or opened.organ_sha256 != plan.verified.passport.organ_sha256:
        raise ChangedSinceVerified(
            where=plan.delivery.sealed.name, expected="the organ that was verified", got="another",
            hint="nothing was written; verify the new file on its own",
        )  # fmt: skip
    return opened


def _file_papers(plan: IntakePlan, notes: Path, opened: Opened, *, now: datetime) -> None:
    passport_path(opened.organ).rename(notes / "passport")
    for name, data in (("label", plan.delivery.label), ("tlog-proof", plan.delivery.proof)):
        if data is not None:
            files.write_atomic(notes / name, data, mode=0o644)
    record = {
        "schema": SCHEMA, "time": canonical.format_time(now), "organ_sha256": opened.organ_sha256,
        "sender": opened.sender, "author": opened.author, "federation": plan.roster.federation,
        "roster_version": plan.roster.version, "log_index": opened.logged.index if opened.logged else None,
        "demands": [demand.field for demand in opened.demands],
    }  # fmt: skip
    files.write_atomic(notes / PAPERS, canonical.dumps(record) + b"\n", mode=0o644)
