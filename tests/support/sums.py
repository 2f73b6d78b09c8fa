"""A cohort of real sites and a real coordinator for secure sums, in memory but for the ledgers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from not_fed.age import HybridIdentity, hpke
from not_fed.aggregation.secure import Ring, ServerSum, SiteSum, SumLedger, Total, Uploaded
from not_fed.envelope.summing import Contribution, KeyRef, SumCall
from not_fed.keys import FileSigner, Opener
from not_fed.trust.members import Member
from not_fed.trust.plans import SumPlan
from not_fed.trust.roster import TrustedRoster

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
NAMES = tuple("abcdefghij")
START = hashlib.sha256(b"start").hexdigest()
NOTHING_CLAIMED = Contribution(dp=None)


@dataclass(frozen=True, kw_only=True)
class Party:
    """A site's keys."""

    name: str
    signer: FileSigner
    opener: Opener


def new_party(name: str) -> Party:
    """Fresh keys."""
    return Party(name=name, signer=FileSigner.generate(name), opener=Opener(name, HybridIdentity(hpke.new_seed())))


def roster_of(parties: Iterable[Party], *, revoked: Sequence[str] = ()) -> TrustedRoster:
    """A roster that has them as authors."""
    members = {
        party.name: Member(
            name=party.name, roles=frozenset({"author", "receiver"}), signing=party.signer.public,
            recipient=party.opener.recipient, not_before=NOW - timedelta(days=1), not_after=NOW + timedelta(days=99),
            active=party.name not in revoked,
        )
        for party in parties
    }  # fmt: skip
    return TrustedRoster(federation="clinics", version=1, expires_at=NOW + timedelta(days=99), members=members)


def plan_of(sites: Sequence[str], **changes: Any) -> SumPlan:  # noqa: ANN401
    """A plan for these sites; c = 1, f = 0 unless said otherwise."""
    fields: dict[str, Any] = {
        "federation": "clinics", "run": "run-1", "coordinator": "hub", "sites": tuple(sorted(sites)), "rounds": 9,
        "base_sha256": "ab" * 32, "spans": ((1, 3),), "collude": 1, "vanish": 0,
    }  # fmt: skip
    return SumPlan(**{**fields, **changes})


@dataclass
class Cohort:
    """Sites with ledgers, and what they answered in one round."""

    plan: SumPlan
    parties: Mapping[str, Party]
    folder: Path
    parameters: int = 40
    roster: TrustedRoster = field(init=False)
    ledgers: dict[str, SumLedger] = field(default_factory=dict)
    uploads: dict[str, tuple[Uploaded, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = roster_of(self.parties.values())
        for name in self.plan.sites:
            home = self.folder / name
            home.mkdir(parents=True, exist_ok=True)
            self.ledgers[name] = SumLedger(home)

    def site(self, name: str, *, plan: SumPlan | None = None, roster: TrustedRoster | None = None) -> SiteSum:
        """A site's state machine, as after a restart."""
        party = self.parties[name]
        return SiteSum(
            plan=plan or self.plan, signer=party.signer, opener=party.opener, roster=roster or self.roster,
            ledger=self.ledgers[name], now=NOW,
        )  # fmt: skip

    def keys(self, names: Sequence[str] | None = None) -> dict[str, bytes]:
        """Each site's signed key for its next round."""
        return {name: self.site(name).offer_key() for name in names or self.plan.sites}

    def call(self, keys: Mapping[str, bytes], *, round_number: int = 1, start: str = START, **changes: Any) -> SumCall:  # noqa: ANN401
        """The call that these keys make."""
        fields: dict[str, Any] = {
            "v": 1, "plan_sha256": self.plan.sha256, "federation": "clinics", "run": "run-1", "round": round_number,
            "start_sha256": start, "parameters": self.parameters,
            "cohort": tuple(
                KeyRef(site=name, key_sha256=hashlib.sha256(line).hexdigest()) for name, line in sorted(keys.items())
            ),
        }  # fmt: skip
        return SumCall(**{**fields, **changes})

    def update(self, name: str, *, seed: int = 0) -> NDArray[np.float32]:
        """A site's change of weights: small, signed, its own."""
        source = np.random.Generator(np.random.PCG64([seed, *name.encode()]))
        return source.normal(0, self.plan.clip / 4, self.parameters).astype(np.float32)

    def upload(
        self, name: str, call: SumCall, keys: Mapping[str, bytes], *, change: NDArray[np.float32] | None = None,
        weight: int = 1,
    ) -> tuple[Uploaded, bytes]:  # fmt: skip
        """A site's honest upload, kept in `uploads`."""
        words = bytearray()
        uploaded = self.site(name).upload(
            call, keys=keys, change=[self.update(name) if change is None else change], sink=words.extend,
            weight=weight, contribution=NOTHING_CLAIMED,
        )  # fmt: skip
        self.uploads[name] = uploaded, bytes(words)
        return self.uploads[name]

    def server(self, call: SumCall, sites: Iterable[str] = (), *, plan: SumPlan | None = None) -> ServerSum:
        """A coordinator that has counted the uploads of `sites`."""
        server = ServerSum(plan=plan or self.plan, call=call, roster=self.roster, now=NOW)
        for name in sites:
            uploaded, words = self.uploads[name]
            server.add_upload(name, label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(words))
        return server

    def help(self, name: str, server: ServerSum) -> tuple[bytes, bytes]:
        """A helper's honest answer for the server's set: statement and words."""
        words = bytearray()
        labels = list(server.close_uploads().labels.values())
        helped = self.site(name).help(
            server.call, labels=labels, capsules_to_me=server.capsules_for(name), sink=words.extend
        )
        return helped.statement, bytes(words)

    def reveal(self, name: str, server: ServerSum, missing: Sequence[str]) -> bytes:
        """A site's honest shares."""
        labels = list(server.close_uploads().labels.values())
        return self.site(name).reveal(
            server.call, labels=labels, capsules_to_me=server.capsules_for(name), missing=missing
        )

    def run(
        self, *, uploads: Sequence[str] | None = None, helpers: Sequence[str] | None = None,
        revealers: Sequence[str] | None = None, **call: Any,  # noqa: ANN401
    ) -> Total:  # fmt: skip
        """A whole round in which only these sites answer at each step."""
        keys = self.keys()
        asked = self.call(keys, **call)
        for name in self.plan.sites if uploads is None else uploads:
            self.upload(name, asked, keys)
        return self.finish(asked, uploads=uploads, helpers=helpers, revealers=revealers)

    def finish(
        self, call: SumCall, *, uploads: Sequence[str] | None = None, helpers: Sequence[str] | None = None,
        revealers: Sequence[str] | None = None,
    ) -> Total:  # fmt: skip
        """The rest of a round whose uploads are there."""
        server = self.server(call, self.plan.sites if uploads is None else uploads)
        server.close_uploads()
        for name in server.helpers:
            if helpers is None or name in helpers:
                statement, words = self.help(name, server)
                server.add_partial(name, statement=statement, vector=memoryview(words))
        missing = server.close_partials()
        if missing:
            for name in call.names if revealers is None else revealers:
                server.add_shares(name, statement=self.reveal(name, server, missing))
        return server.finish()

    def plain(self, sites: Iterable[str], *, weights: Mapping[str, int] | None = None) -> NDArray[Any]:
        """The plain fixed-point sum of the sites' words, modulo the ring."""
        ring = Ring.of(self.plan)
        total = np.zeros(self.parameters, dtype=ring.dtype)
        for name in sites:
            weight = (weights or {}).get(name, 1)
            total += ring.words(ring.round(self.update(name)), weight=weight)
        return total
