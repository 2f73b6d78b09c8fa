"""The rounds of a run, as decisions: what is sent to whom, which answers count, when a round is over.

Knows neither Flower nor a network, and in mode bank neither torch nor a decryption key: the adapter asks for the next
step and its orders, hands over each reply as it comes, and closes the step.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed.aggregation.secure.server import BadVector, HelpersLost, MasksRemain, SumImplausible, TooFewShares, Total
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.deployment import load_deployment
from not_fed.coordinator.kept_log import KeptLog, open_log
from not_fed.coordinator.plan import FederationPlan, load_plan
from not_fed.coordinator.state import (
    GOOD,
    Answered,
    CoordinatorState,
    Delivered,
    DeliveryKind,
    Proposal,
    Status,
    Step,
)
from not_fed.coordinator.summing import SumRound, fresh_work, signed_plan
from not_fed.coordinator.votes import decide, take_vote
from not_fed.envelope.label import Label, check_label, parse_label, write_label
from not_fed.envelope.logged import label_entry
from not_fed.envelope.papers import NO_PAPERS, NOTHING_MORE, AnswerPapers, RoundPapers
from not_fed.envelope.receipt import verify_receipt
from not_fed.envelope.seal import VALID_FOR
from not_fed.envelope.summing import VECTOR_HEAD, SumCall, start_sha256, verify_round_key
from not_fed.envelope.task import Kind, ParcelRef, Task, TotalRef, new_id, parse_task, sign_task, verify_task
from not_fed.envelope.verdict import Ballot
from not_fed.envelope.waiting import COME_BACK
from not_fed.errors import InputError, NotFedError, PeerError, TrustError
from not_fed.home import Home
from not_fed.trust.log_folder import LogFolder
from not_fed.trust.roster import TrustedRoster

if TYPE_CHECKING:
    from not_fed.coordinator.trusted import Made

log = logging.getLogger("not_fed.coordinator")

TASK_VALIDITY = timedelta(days=7)
_CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){0,7}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TooFewAnswers(PeerError):
    """Too few sites sent an organ in this round."""

    code = "too-few-answers"


class WrongAnswer(TrustError):
    """A site's answer is not what the task asked for; nothing of it was stored."""

    code = "wrong-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedParcel:
    """A sealed organ on its way to a site, with its label, and the log's proof where there is a log.

    Attributes:
        sealed: the bytes, when they travel with the order; else the site fetches them from the bank by their digest.
    """

    label: bytes
    sealed_sha256: str
    size_bytes: int
    sealed: bytes | None
    proof: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one site is sent.

    Attributes:
        task: the signed task.
        parcels: those of its sealed organs that are not the site's own.
        log: the newest checkpoint and the proof that the log grew from what the site has seen; None without a log.
        receipt: the site's own, of an earlier private task: its ledger must know what it says.
        papers: what a secure sum or votes add.
        inline_bytes: up to this size sealed organs travel in messages, both ways; None where there is no other way.
    """

    site: str
    task: bytes
    parcels: tuple[OrderedParcel, ...]
    log: bytes | None
    receipt: bytes | None
    inline_bytes: int | None
    papers: RoundPapers = NO_PAPERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a site answered, unchecked.

    Attributes:
        sealed: the organ itself, or `banked`, the digest under which it was left in the bank.
        received: how many parcels it took, in answer to a receiving task.
        refused: an error code instead of an answer.
        left_out: parcels of others that it could not use: digest and error code of each.
        receipt: how far the site's ledger had come, to be kept for it.
        papers: what a secure sum or a vote adds.
    """

    label: bytes | None = None
    sealed: bytes | None = None
    banked: str | None = None
    received: int | None = None
    refused: str | None = None
    left_out: tuple[str, ...] = ()
    receipt: bytes | None = None
    papers: AnswerPapers = NOTHING_MORE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issued:
    """The task of a step, as it is signed now."""

    step: Step
    line: bytes
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Papers:
    """What a site was sent of the log with a task: the same again when the same task goes out again."""

    task: bytes
    growth: bytes
    size: int
    proofs: Mapping[str, bytes]


class Rounds:
    """One run of one federation, from its plan and what is on disk."""

    def __init__(self, home: Path, *, now: datetime) -> None:
        self._home = Home(home)
        self.plan: FederationPlan = load_plan(home)
        deployment = load_deployment(home)
        self._inline_bytes = None if deployment is None else deployment.bank.inline_bytes
        self._signer = self._home.signer()
        self.bank = Bank.at(home)
        self._log_sizes: dict[str, int] = {}  # site -> size of the log that it has seen, where that is certain
        self._papers: dict[str, _Papers] = {}  # site -> what it was sent of the log, until it gives a good answer
        self._proven: tuple[int, dict[str, bytes]] = (-1, {})  # size of the log, and proofs in it by digest
        self._issued: _Issued | None = None
        self.state = CoordinatorState(home)
        self.state.start_run(self.plan.run, plan_sha256=self.plan.sha256())
        self._send_all: set[str] = set()  # sites that have lost organs which they had opened
        self._trust(self._home.roster(now), now=now)

    def refresh(self, *, now: datetime) -> None:
        """Read the roster again. What it does not bear any more counts no longer, and is asked for again.

        Guarantees: a site that is not on it any more is neither ordered nor counted. Where the organs of the last
            round were sealed to a member that was revoked, nobody may open them: in mode bank that round is open again.
        Proved by:
            tests/unit/test_exchange.py::test_a_site_that_is_revoked_in_mid_run_is_not_ordered_and_does_not_count,
            tests/unit/test_exchange.py::test_organs_that_were_sealed_to_a_revoked_site_are_asked_for_again
        """
        roster = self._home.roster(now)
        if roster.version != self.roster.version:
            log.info("roster version %d has taken the place of version %d", roster.version, self.roster.version)
            self._papers.clear()
            self._issued = None
            self._trust(roster, now=now)

    def _trust(self, roster: TrustedRoster, *, now: datetime) -> None:
        self.roster = roster
        self.log: KeptLog | None = open_log(self._home, name=self.plan.name, roster=roster, now=now)
        self.revoked = {site: code for site in self.plan.sites if (code := self._refusal(site, now=now)) is not None}
        for site, code in self.revoked.items():
            self._problem(code, f"roster version {roster.version} does not have it as a site any more", site=site)
        self._recount(now=now)

    def _refusal(self, site: str, *, now: datetime) -> str | None:
        try:
            self.roster.member(site, role="author", now=now)
        except NotFedError as error:
            return error.code
        return None

    def _recount(self, *, now: datetime) -> None:
        """Look at the organs that the next step needs: whose label the roster does not bear counts no longer.

        What a secure sum has summed is no organ that anybody opens: it is left as it is.
        """
        if self.plan.mode == "secure-sum":
            self._burn_if_revoked()
            return
        closed = [step for step in self._steps() if step.kind == "train" and self.state.is_closed(step)]
        at_work = self.next_step(end=False)
        for step in [*closed[-1:], *([at_work] if at_work is not None else [])]:
            for one in self._sealed(step):
                try:
                    self._bank_label(one, now=now)
                except (TrustError, InputError) as error:  # not when the bank's storage does not answer
                    text = f"round {step.round}: its organ counts no longer: {error}"
                    self._problem(error.code, text, site=one.site)
                    self.state.drop_answer(one)
        if closed and self.plan.mode == "bank" and len(self._good(closed[-1])) < self.plan.min_answers:
            log.warning("round %d is open again: too few of its organs are for today's members", closed[-1].round)
            self.state.reopen(closed[-1])

    def _bank_label(self, one: Answered, *, now: datetime) -> Label:
        digest = str(one.sealed_sha256)
        return check_label(
            self.bank.label(digest), sealed_sha256=digest, size_bytes=one.size_bytes, roster=self.roster, now=now
        )

    def _burn_if_revoked(self) -> None:
        """A set of uploads that was fixed and holds a revoked site's can never be summed: honest helpers refuse it."""
        step = self.next_step(end=False)
        line = None if step is None else self.state.call(step.run, step.round)
        if step is None or line is None or step.kind not in ("train", "help", "reveal"):
            return
        cohort = SumCall.from_payload(line, where="call in the coordinator's state").names
        chosen = cohort if step.kind == "train" else self.state.active(step.run, step.round) or ()
        gone = sorted(self.revoked.keys() & set(chosen))
        if gone:
            self._burn(step, "member-not-active", f"{', '.join(gone)} may not take part any more")

    def _burn(self, step: Step, code: str, why: str) -> None:
        log.warning("round %d is burnt: %s", step.round, why)
        self._problem(code, f"round {step.round} is burnt, nothing of it is used: {why}")
        self.state.end_round(step.run, step.round, "burnt", why=code)

    def _steps(self) -> list[Step]:
        run, last = self.plan.run, self.plan.rounds
        burnt = {number for number, (how, _) in self.state.round_outcomes(run).items() if how == "burnt"}
        steps = [
            Step(run=run, round=number, kind=kind)
            for number in range(1, last + 1)
            if number not in burnt
            for kind in self._kinds(number)
        ]
        return [*steps, Step(run=run, round=last, kind="receive")]

    def _kinds(self, round_number: int) -> list[Kind]:
        """The steps of a round, as far as they are known: whether a helper is lost is known once it did not answer."""
        kinds: list[Kind] = ["train"]
        if self.plan.mode == "secure-sum":
            kinds.append("help")
            if self.state.missing(self.plan.run, round_number):
                kinds.append("reveal")
        if self.quorum:
            kinds.append("vote")
        return kinds

    @property
    def quorum(self) -> int:
        """How many sites have to accept a round's aggregate; 0 without a vote."""
        return self.plan.quorum if self.plan.secure_sum is None else self.plan.secure_sum.quorum

    def _kept_rounds(self, *, before: int) -> list[int]:
        """The newest round of each span that counts, of those before a number, in order."""
        outcomes = self.state.round_outcomes(self.plan.run)
        newest: dict[tuple[int, int], int] = {}
        for number in range(1, before):
            closed = self.state.is_closed(Step(run=self.plan.run, round=number, kind="train"))
            decided = self.plan.mode == "secure-sum" or self.quorum > 0
            if outcomes[number][0] == "kept" if decided and number in outcomes else closed and not decided:
                newest[self.plan.span_of(number)] = number
        return sorted(newest.values())

    def _sum(self, round_number: int, *, now: datetime) -> SumRound:
        """A round's secure sum; raises NotTheSignedPlan."""
        return SumRound(
            state=self.state, bank=self.bank, plan=signed_plan(self.roster, self.plan.sum_plan()), roster=self.roster,
            run=self.plan.run, round=round_number, now=now,
        )  # fmt: skip

    def next_step(self, *, end: bool = True) -> Step | None:
        """The first step that is not over, or None when the run is complete, which is noted."""
        for step in self._steps():
            if not self.state.is_closed(step):
                return step
        if end:
            self.state.end_run(self.plan.run)
        return None

    def open(self, step: Step) -> int:
        """Begin to ask for a step's answers; the number of this attempt."""
        number = self.state.open_attempt(step)
        log.info("round %d: %s, attempt %d, awaits %s", step.round, step.kind, number, _names(self.waiting_for(step)))
        return number

    def waiting_for(self, step: Step) -> list[str]:
        """Sites that have not given a good answer in this step, without those that are not on the roster any more."""
        done = {one.site for one in self.state.answers(step.run, step=step) if one.status in GOOD}
        return [site for site in self._asked(step) if site not in done and site not in self.revoked]

    def _asked(self, step: Step) -> list[str]:
        """Who is asked in a step: every site of the plan; in a secure sum its cohort, or its helpers."""
        if self.plan.mode != "secure-sum" or step.kind in ("vote", "receive"):
            return list(self.plan.sites)
        summing = self._sum(step.round, now=datetime.now(UTC))
        call = summing.call()
        if call is None:
            return list(self.plan.sites)
        chosen = summing.helpers() if step.kind == "help" else call.names
        return [site for site in self.plan.sites if site in chosen]

    def enough(self, step: Step) -> bool:
        """Whether as many answers have come as the step needs; a receiving step needs none."""
        return step.kind == "receive" or len(self._good(step)) >= self._needed(step)

    def _needed(self, step: Step) -> int:
        if step.kind == "vote":
            return self.quorum
        if self.plan.mode != "secure-sum":
            return self.plan.min_answers
        summing = self._sum(step.round, now=datetime.now(UTC))
        rule = summing.rule()
        needed = {"train": rule.min_sites, "help": rule.helpers - summing.plan.vanish, "reveal": rule.shares}
        return needed[step.kind]

    def is_ready(self, step: Step, *, patient: bool, now: datetime) -> bool:
        """Whether anybody can be asked: a secure sum begins once its sites have offered their keys.

        Args:
            patient: whether to wait for every site, or for as many as a sum needs.
        """
        if self.plan.mode != "secure-sum" or step.kind != "train":
            return True
        active = [site for site in self.plan.sites if site not in self.revoked]
        start = start_sha256(self.plan.base_sha256, self._organs_before(step.round))
        return self._sum(step.round, now=now).may_call(active, start_sha256=start, patient=patient)

    def lacks_key(self, site: str) -> bool:
        """Whether the next secure sum could still use a key of this site."""
        return self.plan.mode == "secure-sum" and site not in self.state.offered_keys()

    def take_key(self, site: str, line: bytes, *, now: datetime) -> None:
        """Keep a site's key for its next secure sum; one that is not true is not kept, and told."""
        try:
            verify_round_key(line, site=site, roster=self.roster, now=now)
        except NotFedError as error:
            self._problem(error.code, f"its key for a secure sum was not kept: {error}", site=site)
            return
        self.state.offer_key(site, line, sha256=hashlib.sha256(line).hexdigest())

    def order(self, step: Step, site: str, *, now: datetime, bodies: bool = True) -> Order:
        """What to send to one site; its parcels are read from the bank and their digests checked again.

        Args:
            bodies: without, no sealed organ travels inside, however small.
        """
        issued = self._task(step, now=now)
        refs = self._to_send(step, issued.task, site, all_of_them=not bodies)
        labels = {ref.sealed_sha256: self.bank.label(ref.sealed_sha256) for ref in refs}
        papers = self._log_papers(site, issued, labels)
        parcels = []
        for ref in refs:
            inline = bodies and (self._inline_bytes is None or ref.size_bytes <= self._inline_bytes)
            digest = ref.sealed_sha256
            parcels.append(
                OrderedParcel(
                    label=labels[digest], sealed_sha256=digest, size_bytes=ref.size_bytes,
                    sealed=self.bank.get(digest)[0] if inline else None,
                    proof=None if papers is None else papers.proofs[digest],
                )
            )  # fmt: skip
        self.state.deliver(*(self._delivery(step, ref, recipient=site) for ref in refs))
        log.info("round %d: %s task to %s with %d sealed organs", step.round, step.kind, site, len(parcels))
        return Order(
            site=site,
            task=issued.line,
            parcels=tuple(parcels),
            log=None if papers is None else papers.growth,
            receipt=self.state.receipt(site),
            inline_bytes=self._inline_bytes,
            papers=self._round_papers(issued.task, site, now=now),
        )

    def _to_send(self, step: Step, task: Task, site: str, *, all_of_them: bool) -> list[ParcelRef]:
        """What a site does not have: of rounds before the newest, nothing that it has taken in for an earlier task."""
        newest = max((ref.round for ref in task.parcels), default=0)
        refs = [ref for ref in task.parcels if ref.sender != site]
        if site not in self._send_all and not all_of_them:
            had = self._has_opened(step, site)
            refs = [ref for ref in refs if ref.round == newest or ref.sealed_sha256 not in had]
        if task.total is not None:
            total, call = task.total, task.total.call
            refs.append(
                ParcelRef(
                    sender=self.plan.name, round=call.round, sealed_sha256=total.sha256, size_bytes=total.size_bytes,
                    weight=1.0,
                )
            )  # fmt: skip
        return refs

    def _has_opened(self, step: Step, site: str) -> set[str]:
        """Sealed organs that came with tasks which the site has answered since."""
        answered = {
            (one.round, one.kind) for one in self.state.answers(step.run) if one.site == site and one.status in GOOD
        }
        had: set[str] = set()
        for line in self.state.tasks(step.run):
            task = parse_task(line)
            if (task.round, task.kind) in answered and (task.round, task.kind) != (step.round, step.kind):
                had |= {ref.sealed_sha256 for ref in task.parcels}
        return had

    def _round_papers(self, task: Task, site: str, *, now: datetime) -> RoundPapers:
        """What a secure sum or votes add to a task for this site."""
        votes = self._votes_for(task)
        if self.plan.mode != "secure-sum":
            return RoundPapers(votes=votes)
        if task.kind == "train":
            keys = self._sum(task.round, now=now).keys()
            return (
                RoundPapers(keys=keys, votes=votes)
                if task.total is None
                else self._blind_papers(task.total.call.round, site, keys=keys, votes=votes, now=now)
            )
        if task.kind in ("help", "reveal"):
            summing = self._sum(task.round, now=now)
            return RoundPapers(
                labels=tuple(summing.uploads().values()), capsules=summing.capsules_for(site), votes=votes
            )
        if task.total is not None:
            return self._blind_papers(task.total.call.round, site, keys={}, votes=votes, now=now)
        return RoundPapers(votes=votes)

    def _blind_papers(
        self, round_number: int, site: str, *, keys: Mapping[str, bytes], votes: Mapping[int, tuple[bytes, ...]],
        now: datetime,
    ) -> RoundPapers:  # fmt: skip
        summing = self._sum(round_number, now=now)
        capsules = {} if site not in summing.require_call().names else summing.capsules_for(site)
        return RoundPapers(keys=keys, labels=tuple(summing.uploads().values()), capsules=capsules, votes=votes)

    def _votes_for(self, task: Task) -> dict[int, tuple[bytes, ...]]:
        """The signed votes on what the task goes on from, and on what was voted down since."""
        if not self.quorum:
            return {}
        before = task.round if task.kind != "receive" else task.round + 1
        kept = {self.plan.span_of(number): number for number in self._kept_rounds(before=before)}
        found = {}
        for number, (how, _) in self.state.round_outcomes(task.run).items():
            newest = kept.get(self.plan.span_of(number), 0)
            if number < before and (number == newest or (how == "rolled-back" and number > newest)):
                step = Step(run=task.run, round=number, kind="vote")
                found[number] = tuple(self.state.statements(step).values())
        return found

    def _log_papers(self, site: str, issued: _Issued, labels: Mapping[str, bytes]) -> _Papers | None:
        """The newest checkpoint, the proof that the log grew from what the site has seen, and each organ's proof.

        When the same task goes out again, the same papers do: whether or not the site saw them, it accepts them.
        """
        if self.log is None:
            return None
        known = self._papers.get(site)
        if known is None or known.task != issued.line:
            newest: LogFolder = self.log.newest()
            size = newest.checkpoint.size
            known = self._papers[site] = _Papers(
                task=issued.line,
                growth=newest.consistency_text(min(self._log_sizes.pop(site, 0), size)),
                size=size,
                proofs=self._proofs(newest, labels),
            )
        return known

    def _proofs(self, newest: LogFolder, labels: Mapping[str, bytes]) -> dict[str, bytes]:
        """Each organ's proof in this tree; every site gets the same ones, so they are made once."""
        size, known = self._proven
        if size != newest.checkpoint.size:
            known = {}
            self._proven = (newest.checkpoint.size, known)
        for digest, label in labels.items():
            if digest not in known:
                known[digest] = newest.proof(label_entry(label))
        return {digest: known[digest] for digest in labels}

    def saw_log(self, site: str, *, size: int) -> None:
        """A site says, signed, up to which size it has seen the log."""
        self._log_sizes[site] = size

    def may_order(self, step: Step, site: str, *, now: datetime) -> bool:
        """Whether it is certain what the site remembers of the log; if not, it has to be asked first."""
        if self.log is None or site in self._log_sizes:
            return True
        known = self._papers.get(site)
        return known is not None and known.task == self._task(step, now=now).line

    def accept(self, step: Step, site: str, reply: Reply, *, seconds: float, now: datetime) -> Status:
        """Count a reply. Never raises for anything that a site may send: a bad answer is noted under its code.

        Guarantees: an answer that comes again, or after its step is over, changes nothing that counts.
        Proved by: tests/unit/test_rounds.py::test_an_organ_counts_once,
            tests/unit/test_rounds.py::test_an_answer_after_the_rounds_end_is_noted_and_changes_nothing
        """
        if reply.receipt is not None:
            self._keep_receipt(site, reply.receipt, now=now)
        if reply.papers.round_key is not None:
            self.take_key(site, reply.papers.round_key, now=now)
        known = self.state.answer_of(step, site)
        if known is not None and known.status in GOOD:
            log.info("round %d: %s sent an answer that was counted before", step.round, site)
            return "again"
        status, code, digest, size = self._judge(step, site, reply, now=now)
        self.state.answer(
            Answered(
                run=step.run, round=step.round, kind=step.kind, site=site, status=status, code=code,
                sealed_sha256=digest, size_bytes=size, seconds=seconds,
            )
        )  # fmt: skip
        if status in GOOD and site in self._papers:
            self._log_sizes[site] = self._papers.pop(site).size
        if status != "silent":
            self.state.saw_site(site, at=now)
        told = f"{site} answered {status}" + (f" ({code})" if code else "")
        log.info("round %d: %s in %.1f s", step.round, told, seconds)
        for left_out in reply.left_out[: len(self.plan.sites)]:
            digest_part, _, reason = left_out.partition(" ")
            log.info("round %d: %s left out %s: %s", step.round, site, clean_code(digest_part[:12]), clean_code(reason))
        return status

    def _keep_receipt(self, site: str, line: bytes, *, now: datetime) -> None:
        """Keep a true one; one that is not costs the site nothing but its own protection."""
        try:
            receipt = verify_receipt(line, site=site, coordinator=self.plan.name, roster=self.roster, now=now)
        except NotFedError as error:
            log.warning("a receipt of %s was not kept: %s", site, error)
            return
        self.state.keep_receipt(site, line, issued=receipt.issued)

    def close(self, step: Step, *, now: datetime) -> None:
        """End a step: silent sites are noted, and the aggregate is made where this step makes it.

        Raises:
            TooFewAnswers: fewer than the step needs. HelpersLost, TooFewShares: of a secure sum. The attempt is closed
                as such and the step stays open: what has come stays, and a later attempt asks the others again.
        Proved by: tests/unit/test_rounds.py::test_too_few_organs_close_the_attempt_and_a_later_one_goes_on
        """
        answered = {one.site for one in self.state.answers(step.run, step=step)}
        for site in self._asked(step):
            if site in self.revoked or site not in answered:
                self._note_missing(step, site, now=now)
        good, missing = self._good(step), self._missing(step)
        try:
            if step.kind != "vote" and not self.enough(step):
                raise TooFewAnswers(
                    where=f"round {step.round}, {step.kind}",
                    expected=f"at least {self._needed(step)} answers",
                    got=f"{len(good)} ({'; '.join(f'{site}: {why}' for site, why in missing.items())})",
                    hint="nothing is lost: what has come is kept, and the others are asked again at the next start",
                )
            self._conclude(step, good, now=now)
        except PeerError as error:
            self.state.close_attempt(step, outcome="too-few", missing=missing)
            self._problem(error.code, str(error))
            raise
        self._task(step, now=now)  # a step is closed by its task, also when nobody was there to be sent it
        self.state.close(step)
        self.state.close_attempt(step, outcome="enough", missing=missing)
        log.info("round %d: %s is over with %d answers", step.round, step.kind, len(good))

    def _conclude(self, step: Step, good: list[Answered], *, now: datetime) -> None:
        """What a step's answers come to."""
        if step.kind == "vote":
            self._decide(step, now=now)
        elif step.kind == "train" and self.plan.mode == "trusted":
            self._aggregate(step, good, now=now)
        elif step.kind == "train" and self.plan.mode == "secure-sum":
            self._task(step, now=now)
            self._fix_set(step, [one.site for one in good], now=now)
        elif step.kind == "help":
            summing, answered = self._sum(step.round, now=now), {one.site for one in good}
            missing, bound = [one for one in summing.helpers() if one not in answered], summing.bound_missing()
            if missing and bound and missing != bound:
                raise HelpersLost(
                    where=f"round {step.round}", expected=f"nobody lost but {', '.join(bound)}, as before",
                    got=", ".join(missing), hint="the sites open the masks of no other; wait for the helpers",
                )  # fmt: skip
            self.state.fix_missing(step.run, step.round, missing)
            if answered >= set(summing.helpers()):
                self._form_sum(step, summing, now=now)
        elif step.kind == "reveal":
            try:
                self._form_sum(step, self._sum(step.round, now=now), now=now)
            except TooFewShares as error:
                if self.waiting_for(step):
                    raise
                self._burn(step, error.code, "all have answered, and their shares do not fit")

    def _fix_set(self, step: Step, sites: list[str], *, now: datetime) -> None:
        """Which uploads are summed: all that came; those of before, where the same start is tried again.

        Raises:
            TooFewAnswers: one of before is missing: honest helpers sum no other set from this start.
        """
        bound = self._sum(step.round, now=now).bound_set()
        if bound is not None and not set(bound) <= set(sites):
            raise TooFewAnswers(
                where=f"round {step.round}, {step.kind}", expected=f"the uploads of {', '.join(bound)}, as before",
                got=", ".join(sites), hint="a start that is tried again is summed over the same sites only",
            )  # fmt: skip
        self.state.fix_active(step.run, step.round, sites if bound is None else bound)

    def _form_sum(self, step: Step, summing: SumRound, *, now: datetime) -> None:
        """The aggregate behind a round's masked words; where they contradict each other, the round is burnt.

        Raises:
            TooFewShares: more may still come.
        """
        if self.state.proposal(step.run, step.round) is None:
            vectors = self._vectors(step)
            work = fresh_work(self._home)
            try:
                total, wrong = summing.total(vectors, work=work)
                for site in sorted(wrong):
                    self._problem("wrong-share", f"round {step.round}: a share that it gave is wrong", site=site)
                self._use_total(step, summing, total, now=now)
            except (BadVector, MasksRemain, SumImplausible) as error:
                self._burn(step, error.code, str(error))
                return
            finally:
                shutil.rmtree(work, ignore_errors=True)
        for digest in self._vectors(step).values():
            self.bank.discard(digest)
        if not self.quorum:
            self.state.end_round(step.run, step.round, "kept")

    def _use_total(self, step: Step, summing: SumRound, total: Total, *, now: datetime) -> None:
        """Seal the organ behind a sum to every site; a blind sum goes to them as it is."""
        if summing.plan.blind:
            sha256, size = self._store_total(step, total, now=now)
            known = Proposal(sha256=summing.active_sha256(), organ_sha256=None, total_sha256=sha256, size_bytes=size)
            self.state.propose(step.run, step.round, known)
            return
        from not_fed.coordinator.trusted import aggregate_sum  # torch

        with aggregate_sum(
            total, sum_plan=summing.plan, plan=self.plan, round_number=step.round, bank=self.bank, home=self._home,
            roster=self.roster, signer=self._signer, now=now, start=self._began_from(step),
        ) as made:  # fmt: skip
            self._store_aggregate(step, made, now=now)

    def _store_total(self, step: Step, total: Total, *, now: datetime) -> tuple[str, int]:
        data = VECTOR_HEAD + total.words.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        sites = sorted(site for site in self.plan.sites if site not in self.revoked)
        label = write_label(
            federation=self.plan.federation, round_number=step.round, signer=self._signer, to=sites, issued=now,
            expires=now + VALID_FOR, sealed_sha256=digest, size_bytes=len(data),
        )  # fmt: skip
        self.bank.put(data, label=label, roster=self.roster, now=now)
        if self.log is not None:
            self.log.enter(label, now=now)
        return digest, len(data)

    def _vectors(self, step: Step) -> dict[tuple[str, str], str]:
        """(step, site) -> digest of its vector, of those that are summed."""
        active = self.state.active(step.run, step.round) or []
        found = {}
        for kind in ("train", "help"):
            part = Step(run=step.run, round=step.round, kind=kind)
            for one in self._sealed(part):
                if kind == "help" or one.site in active:
                    found[kind, one.site] = str(one.sealed_sha256)
        return found

    def _ballot(self, round_number: int, *, now: datetime) -> Ballot:
        """The question of a round's vote."""
        step = Step(run=self.plan.run, round=round_number, kind="vote")
        proposal = self.state.proposal(step.run, round_number)
        if proposal is None:
            raise TooFewAnswers(
                where=f"round {round_number}", expected="an aggregate to vote on", got="none", hint="start again"
            )
        return Ballot(
            federation=self.plan.federation, run=step.run, round=round_number, coordinator=self.plan.name,
            proposal_sha256=proposal.sha256, start_sha256=self._start_organ(round_number),
            candidate_sha256=proposal.organ_sha256, sites=tuple(self.plan.sites), quorum=self.quorum,
        )  # fmt: skip

    def _start_organ(self, round_number: int) -> str | None:
        """Digest of the organ that a round began from; None for the base's own layers."""
        return self._organs_before(round_number).get(self.plan.span_of(round_number))

    def _organs_before(self, round_number: int) -> dict[tuple[int, int], str]:
        """Span -> digest of the organ that counts there when a round begins, in modes with an aggregate."""
        found = {}
        for number in self._kept_rounds(before=round_number):
            proposal = self.state.proposal(self.plan.run, number)
            if proposal is not None and proposal.organ_sha256 is not None:
                found[self.plan.span_of(number)] = proposal.organ_sha256
        return found

    def _decide(self, step: Step, *, now: datetime) -> None:
        """Keep the round, or go on from where it began."""
        verdict = decide(
            self.state.statements(step), ballot=self._ballot(step.round, now=now), roster=self.roster, now=now
        )
        log.info("round %d: %s", step.round, verdict)
        if verdict.kept:
            proposal = self.state.proposal(step.run, step.round)
            if proposal is not None and proposal.organ_sha256 is None:
                told = replace(proposal, organ_sha256=verdict.candidate_sha256)
                self.state.propose(step.run, step.round, told)
            self.state.end_round(step.run, step.round, "kept", why=str(verdict)[:500])
            return
        self._problem("rolled-back", f"round {step.round}: {verdict}")
        if self.plan.mode == "trusted":
            self._name_outliers(step, now=now)
        self.state.end_round(step.run, step.round, "rolled-back", why=str(verdict)[:500])

    def _name_outliers(self, step: Step, *, now: datetime) -> None:
        """Whose organs stand out in a round that was voted down, for people to look at."""
        from not_fed.coordinator.trusted import find_outliers  # torch and a decryption key

        made_in = Step(run=step.run, round=step.round, kind="train")
        try:
            outliers = find_outliers(
                self._good(made_in), plan=self.plan, round_number=step.round, bank=self.bank, home=self._home,
                roster=self.roster, now=now, start=self._began_from(step), tell=self._problem,
            )  # fmt: skip
        except NotFedError as error:
            log.warning("round %d: its organs could not be looked at again: %s", step.round, error)
            return
        for outlier in outliers:
            self._problem("outlier", f"round {step.round}: {outlier.words}", site=outlier.name)

    def _note_missing(self, step: Step, site: str, *, now: datetime) -> None:
        """A site that did not answer, or is not on the roster any more."""
        self.accept(step, site, Reply(refused="silent"), seconds=0.0, now=now)
        if site not in self.revoked:
            self._problem("silent", f"round {step.round}: it did not answer in time", site=site)

    def _missing(self, step: Step) -> dict[str, str]:
        """Site -> why it gave no good answer."""
        answers = self.state.answers(step.run, step=step)
        return {one.site: one.code or one.status for one in answers if one.status not in GOOD} | {
            site: code for site, code in self.revoked.items() if site in self.plan.sites
        }

    def _sealed(self, step: Step) -> list[Answered]:
        return [one for one in self.state.answers(step.run, step=step) if one.status == "sealed" and one.sealed_sha256]

    def _good(self, step: Step) -> list[Answered]:
        """The answers that count: of sites that are on the roster now."""
        if step.kind in ("reveal", "vote"):
            answers = self.state.answers(step.run, step=step)
            return [one for one in answers if one.status in GOOD and one.site not in self.revoked]
        return [one for one in self._sealed(step) if one.site not in self.revoked]

    def _judge(
        self, step: Step, site: str, reply: Reply, *, now: datetime
    ) -> tuple[Status, str | None, str | None, int]:
        if site in self.revoked:
            return "revoked", self.revoked[site], None, 0
        if reply.refused == "silent":
            return "silent", "silent", None, 0
        if self.state.is_closed(step):
            self._problem("late-answer", f"round {step.round}: it answered after the round was over", site=site)
            return "late", None if reply.refused is None else clean_code(reply.refused), None, 0
        if reply.refused is not None:
            return self._refused(step, site, clean_code(reply.refused))
        if step.kind == "receive":
            return (
                ("received", None, None, 0) if reply.received is not None else ("bad-answer", "wrong-answer", None, 0)
            )
        try:
            digest, size = self._take(step, site, reply, now=now)
        except (PeerError, OSError) as error:  # our own storage, not the site: it is asked again
            code = error.code if isinstance(error, PeerError) else "storage-failed"
            log.warning("round %d: the answer of %s could not be stored: %s", step.round, site, error)
            self._problem(code, f"round {step.round}: its answer could not be stored: {error}", site=site)
            return "waiting", code, None, 0
        except NotFedError as error:
            log.warning("round %d: %s: %s", step.round, site, error)
            self._problem(error.code, f"round {step.round}: its answer does not count: {error}", site=site)
            return "bad-answer", error.code, None, 0
        return "received" if digest is None else "sealed", None, digest, size

    def _take(self, step: Step, site: str, reply: Reply, *, now: datetime) -> tuple[str | None, int]:
        """Check an answer and keep it; digest and size of the file that came with it, if one was asked for."""
        if step.kind == "vote":
            line = reply.papers.statement or b""
            take_vote(line, site=site, ballot=self._ballot(step.round, now=now), roster=self.roster, now=now)
            self.state.keep_statement(step, site, line, capsules={})
            return None, 0
        if self.plan.mode != "secure-sum":
            return self._store(step, site, reply, now=now)
        summing, stored = self._sum(step.round, now=now), None
        claimed = None if reply.label is None else parse_label(reply.label)[1].sealed
        vector = None if claimed is None else (claimed.sha256, claimed.size_bytes)
        summing.check(step.kind, site, reply.papers, vector=vector)
        if vector is not None:
            stored = self._store(step, site, reply, now=now)
        summing.keep(step.kind, site, reply.papers)
        return stored or (None, 0)

    def _refused(self, step: Step, site: str, code: str) -> tuple[Status, str | None, str | None, int]:
        if code == "parcel-awaited":
            self._send_all.add(site)
        if code in COME_BACK:
            return "waiting", code, None, 0
        seen = self.state.sites_seen().get(site)
        version = f" (it runs not-fed {seen.version})" if seen is not None and seen.version else ""
        self._problem(code, f"round {step.round}: it refused the {step.kind} task{version}", site=site)
        return "refused", code, None, 0

    def _store(self, step: Step, site: str, reply: Reply, *, now: datetime) -> tuple[str, int]:
        if reply.label is None or (reply.sealed is None) == (reply.banked is None):
            raise _wrong("one sealed organ and its label", "something else")
        claimed = parse_label(reply.label)[1]  # what it claims is looked at first: it is cheap; then whether it is true
        self._check_asked_for(step, site, claimed)
        if reply.sealed is not None:
            self.bank.put(reply.sealed, label=reply.label, roster=self.roster, now=now)
        else:
            self._check_banked(str(reply.banked), label=reply.label, now=now)
        digest, size = claimed.sealed.sha256, claimed.sealed.size_bytes
        if self.log is not None:
            self.log.enter(self.bank.label(digest), now=now)
        ref = ParcelRef(sender=site, round=step.round, sealed_sha256=digest, size_bytes=size, weight=1.0)
        self.state.deliver(self._delivery(step, ref, recipient=self.plan.name))
        return digest, size

    def _check_banked(self, digest: str, *, label: bytes, now: datetime) -> None:
        """What a site says that it has left in the bank is there, and is what its label says."""
        if not _DIGEST.fullmatch(digest) or not self.bank.holds(digest):
            raise _wrong("a sealed organ that is in the bank", "one that is not")
        check_label(label, sealed_sha256=digest, size_bytes=self.bank.size(digest), roster=self.roster, now=now)

    def _check_asked_for(self, step: Step, site: str, label: Label) -> None:
        recipients = [name for name in self.plan.recipients() if name != site and name not in self.revoked]
        expected = (site, self.plan.federation, step.round, recipients)
        if (label.sender, label.federation, label.round, list(label.to)) != expected:
            raise _wrong(
                f"a label from {site} for round {step.round} to {', '.join(recipients)}",
                f"one from {label.sender} for round {label.round} to {', '.join(label.to)}",
            )
        if label.sealed.size_bytes > self.plan.max_parcel_bytes:
            raise _wrong(
                f"a sealed organ of at most {self.plan.max_parcel_bytes:,} bytes", f"{label.sealed.size_bytes:,}"
            )
        used = self.state.counted(label.sealed.sha256)
        if used is not None and (used.run, used.round, used.site) != (step.run, step.round, site):
            raise _wrong("an organ that was not counted before", "the same one again")

    def _task(self, step: Step, *, now: datetime) -> _Issued:
        """The step's task: the one that went out before, while it is valid under this roster, else a fresh one."""
        last = self._issued
        if last is None or last.step != step or last.task.expires <= now:
            self._issued = last = self._known_task(step, now=now) or self._new_task(step, now=now)
        return last

    def _known_task(self, step: Step, *, now: datetime) -> _Issued | None:
        line = self.state.task(step, now=now)
        if line is None:
            return None
        try:
            return _Issued(step=step, line=line, task=verify_task(line, roster=self.roster, now=now))
        except NotFedError as error:
            log.info("round %d: its task is issued anew: %s", step.round, error)
            return None

    def _new_task(self, step: Step, *, now: datetime) -> _Issued:
        issued = now.replace(microsecond=0)
        plan = self.plan
        task = Task(
            v=1,
            id=new_id(),
            federation=plan.federation,
            run=plan.run,
            round=step.round,
            rounds=plan.rounds,
            mode=plan.mode,
            kind=step.kind,
            quorum=self.quorum,
            **self._of_sum(step, now=now),
            base_sha256=plan.base_sha256,
            span=plan.span_of(step.round),
            spans=plan.in_turn,
            training=plan.training,
            privacy=plan.privacy,
            sites=tuple(plan.sites),
            recipients=tuple(plan.recipients()),
            parcels=tuple(self._parcels(step, now=now)),
            coordinator=plan.name,
            issued=issued,
            expires=issued + TASK_VALIDITY,
            roster_version=self.roster.version,
        )
        line = sign_task(task, signer=self._signer)
        self.state.issue(step, task=line, expires=task.expires)
        return _Issued(step=step, line=line, task=task)

    def _of_sum(self, step: Step, *, now: datetime) -> dict[str, Any]:
        """The fields that a secure sum or a vote adds to a task."""
        found: dict[str, Any] = {}
        if step.kind == "vote":
            proposal = self.state.proposal(step.run, step.round)
            found["proposal_sha256"] = None if proposal is None else proposal.sha256
        if self.plan.mode != "secure-sum":
            return found
        if step.kind == "train":
            found["call"] = self._call(step, now=now)
        if step.kind in ("help", "reveal"):
            summing = self._sum(step.round, now=now)
            found |= {"call": summing.require_call(), "active_sha256": summing.active_sha256()}
        if step.kind == "reveal":
            found["missing"] = tuple(self.state.missing(step.run, step.round))
        return found | {"total": self._blind_total(step, now=now)}

    def _call(self, step: Step, *, now: datetime) -> SumCall:
        """The round's call: made once, of the keys that sites have offered."""
        summing = self._sum(step.round, now=now)
        known = summing.call()
        if known is not None:
            return known
        from not_fed.organ.anatomy import Span
        from not_fed.organ.change import count
        from not_fed.resources.bases import find_base

        places = find_base(str(self.plan.base)).span_places(Span(*self.plan.span_of(step.round)))
        return summing.make_call(
            [site for site in self.plan.sites if site not in self.revoked],
            start_sha256=start_sha256(self.plan.base_sha256, self._organs_before(step.round)),
            parameters=count(places),
        )

    def _blind_total(self, step: Step, *, now: datetime) -> TotalRef | None:
        """The blind sum that comes with a task: the candidate of a vote, else that of the newest round that counts."""
        if step.kind in ("help", "reveal"):
            return None
        number = step.round if step.kind == "vote" else max(self._kept_rounds(before=self._horizon(step)), default=0)
        proposal = self.state.proposal(step.run, number)
        if proposal is None or proposal.total_sha256 is None:
            return None
        summing = self._sum(number, now=now)
        return TotalRef(
            call=summing.require_call(), active_sha256=summing.active_sha256(), sha256=proposal.total_sha256,
            size_bytes=proposal.size_bytes,
        )  # fmt: skip

    def _horizon(self, step: Step) -> int:
        """The first round that a step does not go on from."""
        return step.round + 1 if step.kind == "receive" else step.round

    def _parcels(self, step: Step, *, now: datetime) -> list[ParcelRef]:
        """The sealed organs that count: of each span those of its newest round, and the candidate of a vote."""
        if step.kind in ("help", "reveal"):
            return []
        rounds = self._kept_rounds(before=self._horizon(step))
        if step.kind == "vote":
            rounds = [*rounds, step.round]
        return [ref for number in rounds for ref in self._parcels_of(step.run, number, now=now)]

    def _parcels_of(self, run: str, number: int, *, now: datetime) -> list[ParcelRef]:
        made_in = Step(run=run, round=number, kind="train")
        good = self._good(made_in)
        if self.plan.mode != "bank":
            proposal = self.state.proposal(run, number)
            if proposal is not None and proposal.total_sha256 is not None:
                return []
            digest, size = self._aggregate(made_in, good, now=now)
            return [ParcelRef(sender=self.plan.name, round=number, sealed_sha256=digest, size_bytes=size, weight=1.0)]
        return [
            ParcelRef(
                sender=one.site,
                round=number,
                sealed_sha256=str(one.sealed_sha256),
                size_bytes=one.size_bytes,
                weight=self.plan.weights.get(one.site, 1.0),
            )
            for one in sorted(good, key=lambda one: one.site)
        ]

    def _known_aggregate(self, step: Step, *, now: datetime) -> tuple[str, int] | None:
        """The aggregate of a round, while everybody that it is sealed to is on the roster."""
        known = self.state.aggregate(step.run, step.round)
        if known is None:
            return None
        digest, size = known
        try:
            check_label(self.bank.label(digest), sealed_sha256=digest, size_bytes=size, roster=self.roster, now=now)
        except (TrustError, InputError) as error:
            log.info("round %d: its aggregate is sealed anew: %s", step.round, error)
            return None
        return known

    def _aggregate(self, step: Step, good: list[Answered], *, now: datetime) -> tuple[str, int]:
        known = self._known_aggregate(step, now=now)
        if known is not None:
            return known
        from not_fed.coordinator import trusted  # torch and a decryption key, in these modes only

        known_facts: dict[str, Any] = {
            "plan": self.plan, "round_number": step.round, "bank": self.bank, "home": self._home,
            "roster": self.roster, "signer": self._signer, "now": now,
        }  # fmt: skip
        old = self.state.aggregate(step.run, step.round)
        if old is not None and (self.plan.mode == "secure-sum" or self.quorum):  # summed, or voted on: there is one
            making = trusted.seal_again(old[0], **known_facts)
        else:
            making = trusted.aggregate(good, start=self._began_from(step), tell=self._problem, **known_facts)
        with making as made:
            return self._store_aggregate(step, made, now=now)

    def _store_aggregate(self, step: Step, made: Made, *, now: datetime) -> tuple[str, int]:
        stored = self.bank.put(made.sealed, label=made.label, roster=self.roster, now=now).sealed
        if self.log is not None:
            self.log.enter(made.label, now=now)
        digest, size = stored.sha256, stored.size_bytes
        self.state.set_aggregate(step.run, step.round, sealed_sha256=digest, size_bytes=size)
        known = Proposal(sha256=made.organ_sha256, organ_sha256=made.organ_sha256)
        self.state.propose(step.run, step.round, known)
        log.info("round %d: its aggregate is sealed to every site", step.round)
        return digest, size

    def _began_from(self, step: Step) -> str | None:
        """The sealed aggregate that a round's training began from; None where it was the base's own layers."""
        span = self.plan.span_of(step.round)
        kept = [number for number in self._kept_rounds(before=step.round) if self.plan.span_of(number) == span]
        known = self.state.aggregate(step.run, kept[-1]) if kept else None
        return None if known is None else known[0]

    def _problem(self, code: str, text: str, *, site: str | None = None) -> None:
        self.state.problem(code, " ".join(text.split())[:500], site=site)

    def _delivery(self, step: Step, ref: ParcelRef, *, recipient: str) -> Delivered:
        kind: DeliveryKind = "aggregate" if ref.sender == self.plan.name else "organ"
        if self.plan.mode == "secure-sum" and recipient == self.plan.name:
            kind = "partial" if step.kind == "help" else "update"
        return Delivered(
            run=step.run,
            round=ref.round,
            kind=kind,
            sender=ref.sender,
            recipient=recipient,
            sealed_sha256=ref.sealed_sha256,
            size_bytes=ref.size_bytes,
        )


def clean_code(code: object) -> str:
    """A site's code when it looks like one; whoever is connected may send anything, lines for the log included."""
    return code if isinstance(code, str) and len(code) <= 64 and _CODE.fullmatch(code) else "bad-code"


def _names(sites: list[str]) -> str:
    return ", ".join(sites) if sites else "nobody"


def _wrong(expected: str, got: str) -> WrongAnswer:
    return WrongAnswer(where="answer", expected=expected, got=got, hint="ask the site; the round goes on without it")
