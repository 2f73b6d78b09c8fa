"""A round's secure sum at the coordinator, rebuilt from its disk at each step: a crash loses nothing.

Signed papers and capsules are in the coordinator's state, masked vectors in its bank until the sum is formed. What the
coordinator may ask for follows from the plan that the stewards signed into the roster; it chooses nothing.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from not_fed.aggregation.secure.ring import Ring
from not_fed.aggregation.secure.server import ServerSum, Total
from not_fed.aggregation.secure.site import NotTheSignedPlan
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.state import CoordinatorState, Step
from not_fed.envelope.papers import AnswerPapers
from not_fed.envelope.summing import KeyRef, SumCall, active_sha256, verify_round_key
from not_fed.errors import PeerError, TrustError
from not_fed.home import Home
from not_fed.trust.plans import SumPlan, Thresholds, UnsafePlan
from not_fed.trust.roster import TrustedRoster

KEY_MARGIN = timedelta(days=8)  # a task is valid for seven


class TooFewKeys(PeerError):
    """Too few sites have offered a key for a secure sum."""

    code = "too-few-keys"


def fresh_work(home: Home) -> Path:
    """An empty private folder for masked vectors, whatever an attempt that was cut off left there."""
    shutil.rmtree(home.private_folder("sum-work"))
    return home.private_folder("sum-work")


def signed_plan(roster: TrustedRoster, proposed: SumPlan) -> SumPlan:
    """The stewards' plan for the run, which has to be the one that federation.toml proposes.

    Raises:
        NotTheSignedPlan: the roster has none, or another.
    """
    plan = roster.plans.get(proposed.run)
    if plan != proposed:
        raise NotTheSignedPlan(
            where=f"run {proposed.run}", expected="the plan of federation.toml in the roster, signed by the stewards",
            got="none" if plan is None else "another", hint="not-fed roster plan proposes it to the stewards",
        )  # fmt: skip
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRound:
    """One round's secure sum."""

    state: CoordinatorState
    bank: Bank
    plan: SumPlan
    roster: TrustedRoster
    run: str
    round: int
    now: datetime

    # -- the call --------------------------------------------------------------------------------------------------

    def call(self) -> SumCall | None:
        """The round's call, if it has been made."""
        line = self.state.call(self.run, self.round)
        return None if line is None else SumCall.from_payload(line, where="call in the coordinator's state")

    def require_call(self) -> SumCall:
        """The round's call; raises TooFewKeys while there is none."""
        call = self.call()
        if call is None:
            raise self._too_few(0)
        return call

    def rule(self) -> Thresholds:
        """What the plan means for this round's cohort; for all sites while there is none."""
        call = self.call()
        return self.plan.thresholds(None if call is None else len(call.names))

    def may_call(self, sites: Iterable[str], *, start_sha256: str, patient: bool) -> bool:
        """Whether the call is made or can be: every site has offered a key; or enough, when the others are late."""
        if self.call() is not None:
            return True
        wanted, bound = set(sites), self.bound_cohort(start_sha256)
        offered = self._offered(wanted).keys()
        if bound is not None:
            return offered >= set(bound)
        return self._bears(len(offered)) and (not patient or offered == wanted)

    def make_call(self, sites: Iterable[str], *, start_sha256: str, parameters: int) -> SumCall:
        """The round's one call: to those of the sites that have offered a key. On disk before it goes out.

        Where an earlier round tried the same start, to its sites and no others: honest sites refuse any other cohort.

        Raises:
            TooFewKeys.
        Proved by: tests/unit/test_sum_rounds.py::test_a_start_that_is_tried_again_has_the_same_cohort
        """
        known = self.call()
        if known is not None:
            return known
        bound, offered = self.bound_cohort(start_sha256), self._offered(set(sites))
        if bound is not None:
            offered = {site: line for site, line in offered.items() if site in bound}
        if not self._bears(len(offered)) or (bound is not None and len(offered) < len(bound)):
            raise self._too_few(len(offered), needed=None if bound is None else len(bound))
        digests = {site: hashlib.sha256(line).hexdigest() for site, line in offered.items()}
        call = SumCall(
            v=1, plan_sha256=self.plan.sha256, federation=self.plan.federation, run=self.run, round=self.round,
            start_sha256=start_sha256, parameters=parameters,
            cohort=tuple(KeyRef(site=site, key_sha256=digest) for site, digest in sorted(digests.items())),
        )  # fmt: skip
        keys = {digests[site]: line for site, line in offered.items()}
        self.state.keep_call(self.run, self.round, call.to_payload(), keys=keys)
        return call

    def _offered(self, sites: set[str]) -> dict[str, bytes]:
        """Keys that will be good for as long as a round may take: a call that was made is never made anew."""
        found = {}
        for site, line in self.state.offered_keys().items():
            try:
                key = verify_round_key(line, site=site, roster=self.roster, now=self.now)
            except TrustError:
                continue
            if site in sites and key.expires - self.now > KEY_MARGIN:
                found[site] = line
        return found

    def _bears(self, sites: int) -> bool:
        """Whether the plan's rule holds for a cohort of that many sites."""
        try:
            self.plan.thresholds(sites)
        except UnsafePlan:
            return False
        return True

    # -- what an earlier round from the same start has bound -------------------------------------------------------

    def bound_cohort(self, start_sha256: str) -> list[str] | None:
        """The sites of an earlier round from the same start."""
        return next((call.names for _, call in self._earlier(start_sha256)), None)

    def bound_set(self) -> list[str] | None:
        """The sites whose uploads an earlier round from the same start has summed, or was about to."""
        rounds = [number for number, _ in self._earlier(self.require_call().start_sha256)]
        return next((found for number in rounds if (found := self.state.active(self.run, number)) is not None), None)

    def bound_missing(self) -> list[str]:
        """The helpers that were lost in an earlier round from the same start; nobody, where none was."""
        rounds = [number for number, _ in self._earlier(self.require_call().start_sha256)]
        return next((found for number in rounds if (found := self.state.missing(self.run, number))), [])

    def _earlier(self, start_sha256: str) -> list[tuple[int, SumCall]]:
        found = []
        for number in range(1, self.round):
            line = self.state.call(self.run, number)
            call = None if line is None else SumCall.from_payload(line, where="call in the coordinator's state")
            if call is not None and call.start_sha256 == start_sha256:
                found.append((number, call))
        return found

    def keys(self) -> dict[str, bytes]:
        """Site -> its signed key for this round."""
        return {one.site: self.state.call_key(one.key_sha256) for one in self.require_call().cohort}

    # -- answers ---------------------------------------------------------------------------------------------------

    def check(self, kind: str, site: str, papers: AnswerPapers, *, vector: tuple[str, int] | None) -> None:
        """Check what a site answered, before anything of it is kept.

        Args:
            vector: digest and size that its relay label names; None where there is none.
        Raises:
            BadSumPaper, BadSignature, ...; BadVector: what it says of the vector contradicts itself.
        """
        statement = papers.statement or b""
        server = self.server(fixed=kind != "train")
        if kind == "train":
            named = server.check_upload(site, label=statement, capsules_of=papers.capsules).vector_sha256
        elif kind == "help":
            named = server.check_partial(site, statement=statement).vector_sha256
        else:
            server.close_partials()
            server.check_shares(site, statement=statement)
            named = None
        size = Ring.of(self.plan).vector_bytes(server.call.parameters)
        server.require_vector(site, named=named, got=vector, size_bytes=size)

    def keep(self, kind: str, site: str, papers: AnswerPapers) -> None:
        """Keep the papers of an answer that was checked, and whose vector is stored."""
        capsules = papers.capsules if kind == "train" else {}
        self.state.keep_statement(self._step(kind), site, papers.statement or b"", capsules=capsules)

    def uploads(self, sites: Iterable[str] | None = None) -> dict[str, bytes]:
        """Site -> its signed upload: of the set, once that is fixed, else of all that came."""
        chosen = self.state.active(self.run, self.round) if sites is None else list(sites)
        found = self.state.statements(self._step("train"))
        return found if chosen is None else {site: found[site] for site in sorted(chosen)}

    def active_sha256(self) -> str:
        """How the set that was fixed is named."""
        return active_sha256(self.require_call().sha256, list(self.uploads().values()))

    def capsules_for(self, site: str) -> dict[str, bytes]:
        """Uploader -> what it sealed for this site, over the set."""
        found = self.state.capsules_for(self.run, self.round, site)
        return {uploader: found[uploader] for uploader in self.uploads()}

    def helpers(self) -> list[str]:
        """Who carries the masks of this round."""
        call = self.require_call()
        return call.helpers(self.plan.thresholds(len(call.names)).helpers)

    # -- the sum ---------------------------------------------------------------------------------------------------

    def server(self, *, fixed: bool) -> ServerSum:
        """The state machine, with the papers that count and without vectors.

        Args:
            fixed: with the set of uploads that is summed, and the partial sums that came.
        """
        server = ServerSum(plan=self.plan, call=self.require_call(), roster=self.roster, now=self.now)
        if not fixed:
            return server
        for site, label in self.uploads().items():
            capsules = self.state.capsules_of(self.run, self.round, site)
            server.count_upload(site, label=label, capsules_of=capsules)
        server.close_uploads()
        for site, statement in self.state.statements(self._step("help")).items():
            server.count_partial(site, statement=statement)
        return server

    def total(self, vectors: Mapping[tuple[str, str], str], *, work: Path) -> tuple[Total, set[str]]:
        """The sum, from all that has come; and the sites whose shares were wrong.

        Args:
            vectors: (step, site) -> digest of its vector in the bank; one is brought to `work` at a time.
        Raises:
            HelpersLost, TooFewShares: more may still come. BadVector, MasksRemain, SumImplausible: the round is burnt.
        """
        server = self.server(fixed=True)
        missing = server.close_partials()
        for (kind, site), digest in sorted(vectors.items()):
            with self._vector(digest, work=work) as vector:
                if kind == "train":
                    server.add_vector(site, vector=vector)
                else:
                    server.subtract_vector(site, vector=vector)
        if missing:
            for site, statement in self.state.statements(self._step("reveal")).items():
                server.add_shares(site, statement=statement)
        return server.finish(), server.wrong_shares

    @contextmanager
    def _vector(self, digest: str, *, work: Path) -> Iterator[memoryview]:
        """A vector's bytes, mapped, so that memory holds no more of it than the machine likes."""
        path = work / "vector"
        self.bank.fetch(digest, path)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                view = memoryview(mapped)
                try:
                    yield view
                finally:
                    view.release()
        finally:
            path.unlink()

    def _step(self, kind: str) -> Step:
        return Step(run=self.run, round=self.round, kind=kind)  # type: ignore[arg-type]

    def _too_few(self, got: int, *, needed: int | None = None) -> TooFewKeys:
        least = self.plan.thresholds().min_sites
        return TooFewKeys(
            where=f"round {self.round}",
            expected=f"keys of at least {least} sites" if needed is None else f"keys of the {needed} sites of before",
            got=str(got), hint="sites offer one when they connect; their policy has to have mode secure-sum",
        )  # fmt: skip
