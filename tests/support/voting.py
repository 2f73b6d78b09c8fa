"""A small federation that votes: real homes, keys and roster; ballots, votes and jobs over them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from not_fed.envelope.verdict import Ballot, Verdict, count_votes
from not_fed.envelope.vote import Vote, sign_vote
from not_fed.home import Home
from not_fed.keys import Signer
from not_fed.organ.data import read_data
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.statement import Entry
from not_fed.progress import silent
from not_fed.settings import load
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import to_toml
from not_fed.site.job import Job
from not_fed.site.policy import POLICY_FILE, SitePolicy
from not_fed.site.state import SiteState
from not_fed.trust.roster import TrustedRoster
from tests.support.federation import SITES, a_task, an_organ, tiny_prepared

CALL, START, GOOD, BAD = ("1" * 64, "2" * 64, "3" * 64, "4" * 64)
CHARGED = {"allowed": "charged"}
PUBLIC = {"allowed": "public_by_decision"}


@dataclass(frozen=True)
class Polling:
    """Three sites with their keys, their roster, and a question."""

    roster: TrustedRoster
    signers: dict[str, Signer]
    now: datetime

    @classmethod
    def of(cls, prepared: Prepared) -> Polling:
        """The sites of a prepared federation."""
        now = datetime.now(UTC)
        signers = {site: Home(home).signer() for site, home in prepared.sites.items()}
        return cls(Home(prepared.coordinator).roster(now), signers, now)

    @property
    def ballot(self) -> Ballot:
        """Two of three have to accept."""
        return Ballot(
            federation="tiny", run="first", round=1, coordinator="coordinator", proposal_sha256=CALL,
            start_sha256=START, candidate_sha256=GOOD, sites=SITES, quorum=2,
        )  # fmt: skip

    def vote(
        self, site: str, reason: str = "better", *, by: str | None = None,
        **changes: Any,  # noqa: ANN401  any field
    ) -> bytes:  # fmt: skip
        """A signed vote in the name of `site`, with changes; signed by another's keys where `by` says so."""
        unread = reason in ("cannot-open", "cannot-read-sum")
        fields: dict[str, Any] = {
            "v": 1, "federation": "tiny", "run": "first", "round": 1, "coordinator": "coordinator", "site": site,
            "proposal_sha256": CALL, "start_sha256": START, "candidate_sha256": None if unread else GOOD,
            "accept": reason == "better", "reason": reason, "issued": self.now,
        }  # fmt: skip
        return sign_vote(Vote(**{**fields, **changes}), signer=self.signers[by or site])

    def count(self, lines: Iterable[bytes], **changes: Any) -> Verdict:  # noqa: ANN401  as `replace` takes them
        """The verdict on the ballot, or on one with changes."""
        return count_votes(lines, ballot=replace(self.ballot, **changes), roster=self.roster, now=self.now)

    def without(self, site: str) -> TrustedRoster:
        """The roster after a site was revoked."""
        members = {**self.roster.members, site: replace(self.roster.members[site], active=False)}
        return replace(self.roster, members=members)


def voting_site(folder: Path, *, epsilon: float | None = 8.0, site: str = "clinic", **policy: object) -> Prepared:
    """A prepared federation one of whose sites has held-out records and the given `[vote]` table or other fields."""
    prepared = tiny_prepared(folder, epsilon=epsilon)
    home = prepared.sites[site]
    shutil.copyfile(prepared.held_out[site], home / "held-out.jsonl")
    path = home / POLICY_FILE
    fields = load(SitePolicy, path).model_dump() | {"held_out": "held-out.jsonl"} | policy
    path.write_text(to_toml({name: value for name, value in fields.items() if value is not None}))
    return prepared


def a_job(prepared: Prepared, *, site: str = "clinic", **task: object) -> Job:
    """The site at work on a task of round 1 in mode trusted."""
    home, now = Home(prepared.sites[site]), datetime.now(UTC)
    trusted = {"mode": "trusted", "recipients": ("coordinator",)}
    asked, policy = a_task(prepared, **{**trusted, **task}), load(SitePolicy, home.folder / POLICY_FILE)
    return Job(
        task=asked, policy=policy, home=home, roster=home.roster(now), state=SiteState(home.folder), now=now,
        progress=silent,
    )  # fmt: skip


def two_organs(prepared: Prepared, folder: Path) -> tuple[Path, Path]:
    """An organ that reads the tiny base's records well, and one that does not."""
    return an_organ(prepared, folder / "good.organ"), an_organ(prepared, folder / "bad.organ", add=0.6)


def charges(prepared: Prepared, *, site: str = "clinic") -> list[Entry]:
    """What the site's held-out records were charged, as `budget history` has it."""
    home = prepared.sites[site]
    ledger, records = Ledger.at(home / "ledger"), read_data(home / "held-out.jsonl")
    return ledger.history(ledger.identify(records.texts), unit="record")
