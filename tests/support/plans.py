"""Three stewards whose federation has four sites and a coordinator, and the plan of a secure sum among them."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from not_fed import canonical
from not_fed.keys import Steward
from not_fed.trust import draft as drafts
from not_fed.trust.ceremony import propose, settle
from not_fed.trust.planning import PlanEdit
from not_fed.trust.plans import SumPlan
from not_fed.trust.repository import PLANS
from not_fed.trust.roster import TrustedRoster, create_roster, pin_roster
from not_fed.trust.stewards import unchanged
from tests.support.rosters import NAMES, Council, forge_draft, signers
from tests.support.trust import FEDERATION, NOW, Site

SITES = ("clinic", "lab", "north", "ward")


def sum_plan(**changes: Any) -> SumPlan:  # noqa: ANN401
    """Four sites, of which one may collude and one may vanish."""
    fields: dict[str, Any] = {
        "federation": FEDERATION, "run": "spring", "coordinator": "hub", "sites": SITES, "rounds": 12,
        "base_sha256": "ab" * 32, "spans": ((4, 8),), "collude": 1, "vanish": 1, "quorum": 3,
    }  # fmt: skip
    return SumPlan(**fields | changes)


def planned_council(folder: Path, *, plans: Sequence[SumPlan] = ()) -> Council:
    """As `Council.make`, with the four sites and the coordinator; a fifth member is no author.

    One with the same plans is made once for all tests of a process and copied.
    """
    made = _made(tuple(plans))
    return replace(made, folder=shutil.copytree(made.folder, folder))


@cache
def _made(plans: tuple[SumPlan, ...]) -> Council:
    folder = Path(tempfile.mkdtemp(prefix="not-fed-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stewards = tuple(Steward.generate(name) for name in NAMES)
    sites = {name: Site.make(name) for name in (*SITES, "reader", "hub")}
    roles = {"hub": ["relay", "aggregator"], "reader": ["receiver"]}
    members = [(site.public, roles.get(name, ["author", "receiver"])) for name, site in sites.items()]
    digest = create_roster(
        folder / "alice", federation=FEDERATION, steward=stewards, members=members, plans=plans, now=NOW
    )
    for name in ("bob", "carol", "site"):
        pin_roster(folder / "alice", root_sha256=digest, out=folder / name, now=NOW)
    return Council(folder, stewards, sites["clinic"], digest)


def published(
    council: Council, edit: PlanEdit, *, at: str = "alice", by: Sequence[str] = ("alice", "bob"), now: datetime = NOW
) -> TrustedRoster:
    """The honest way: two stewards sign it, in the folder of one of them."""
    proposal = propose(council.of(at), unchanged, now=now, plans=edit)
    for name in by:
        proposal.sign(council.steward(name), instead=True)
    roster = settle(proposal, signed_by=None).roster
    assert roster is not None
    return roster


def forge_plans(
    council: Council, out: Path, content: object, *, by: Sequence[Steward], at: str = "alice",
) -> Path:  # fmt: skip
    """The next version with anything at all for its plans, written by hand and signed by `by`.

    Args:
        content: bytes as they are, anything else as our command would write it; None for no such target.
    """
    honest = out.with_name(f"{out.name}-honest")
    drafts.write_draft(honest, propose(council.of(at), unchanged, now=NOW).draft)
    data = content if content is None or isinstance(content, bytes) else canonical.dumps(content) + b"\n"

    def change(values: dict[str, dict[str, Any]]) -> None:
        targets = values["targets"]["targets"]
        targets.pop(PLANS, None)
        if data is not None:
            targets[PLANS] = {"length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}

    forge_draft(honest, out, signers(by), change)
    if data is not None:
        (out / "targets" / f"{hashlib.sha256(data).hexdigest()}.{PLANS}").write_bytes(data)
    return out


def plans_file(*plans: Mapping[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """`plans.json`, for whatever is to be in it."""
    return {"format": "not-fed.plans/1", "plans": list(plans), "removed": []} | changes


def as_json(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A good plan with anything changed, whether it can be or not."""
    return sum_plan().model_dump(mode="json") | changes
