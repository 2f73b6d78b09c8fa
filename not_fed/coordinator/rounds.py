"""The rounds of a run, as decisions: what is sent to whom, which answers count, when a round is over.

Knows neither Flower nor a network, and in mode bank neither torch nor a decryption key: the adapter asks for the next
step and its orders, hands over each reply as it comes, and closes the step.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from not_fed import canonical
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.kept_log import open_log
from not_fed.coordinator.plan import FederationPlan, load_plan
from not_fed.coordinator.state import Answered, CoordinatorState, Delivered, DeliveryKind, Status, Step
from not_fed.envelope.logged import label_entry
from not_fed.envelope.receipt import verify_receipt
from not_fed.envelope.task import ParcelRef, Task, new_id, sign_task
from not_fed.errors import NotFedError, PeerError, TrustError
from not_fed.home import Home
from not_fed.trust.log_folder import LogFolder

log = logging.getLogger("not_fed.coordinator")

TASK_VALIDITY = timedelta(days=7)
_CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){0,7}")


class TooFewAnswers(PeerError):
    """Too few sites sent an organ in this round."""

    code = "too-few-answers"


class WrongAnswer(TrustError):
    """A site's answer is not what the task asked for; nothing of it was stored."""

    code = "wrong-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedParcel:
    """A sealed organ on its way to a site, with its label, and the log's proof where there is a log."""

    label: bytes
    sealed: bytes
    proof: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one site is sent.

    Attributes:
        task: the signed task.
        parcels: those of its sealed organs that are not the site's own.
        log: the newest checkpoint and the proof that the log grew from what the site has seen; None without a log.
        receipt: the site's own, of an earlier private task: its ledger must know what it says.
    """

    site: str
    task: bytes
    parcels: tuple[OrderedParcel, ...]
    log: bytes | None
    receipt: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a site answered, unchecked.

    Attributes:
        received: how many parcels it took, in answer to a receiving task.
        refused: an error code instead of an answer.
        left_out: parcels of others that it could not use: digest and error code of each.
        receipt: how far the site's ledger had come, to be kept for it.
    """

    label: bytes | None = None
    sealed: bytes | None = None
    received: int | None = None
    refused: str | None = None
    left_out: tuple[str, ...] = ()
    receipt: bytes | None = None


class Rounds:
    """One run of one federation, from its plan and what is on disk."""

    def __init__(self, home: Path, *, now: datetime) -> None:
        self._home = Home(home)
        self.plan: FederationPlan = load_plan(home)
        self.roster = self._home.roster(now)
        self._signer = self._home.signer()
        self.bank = Bank(home / "bank")
        self.log = open_log(self._home, name=self.plan.name, roster=self.roster, now=now)
        self._log_sizes: dict[str, int] = {}  # site -> size of the log that it has seen, where that is certain
        self._log_sent: dict[str, int] = {}  # site -> size of the log that it was sent, until it gives a good answer
        self.state = CoordinatorState(home)
        self.state.start_run(
            self.plan.run, plan_sha256=hashlib.sha256(canonical.dumps(self.plan.model_dump(mode="json"))).hexdigest()
        )

    def next_step(self) -> Step | None:
        """The first step that is not over, or None when the run is complete."""
        last = self.plan.rounds
        steps = [Step(run=self.plan.run, round=number, kind="train") for number in range(1, last + 1)]
        steps.append(Step(run=self.plan.run, round=last, kind="receive"))
        for step in steps:
            if not self.state.is_closed(step):
                return step
        self.state.end_run(self.plan.run)
        return None

    def waiting_for(self, step: Step) -> list[str]:
        """Sites that have not given a good answer in this step."""
        done = {one.site for one in self.state.answers(step.run, step=step) if one.status in ("sealed", "received")}
        return [site for site in self.plan.sites if site not in done]

    def order(self, step: Step, site: str, *, now: datetime) -> Order:
        """What to send to one site; its parcels are read from the bank and their digests checked again."""
        task = self._task(step, now=now)
        refs = [ref for ref in self._parcels(step) if ref.sender != site]
        parcels, log_now = [], None if self.log is None else self.log.newest()
        for ref in refs:
            sealed, label = self.bank.get(ref.sealed_sha256)
            proof = None if log_now is None else log_now.proof(label_entry(label))
            parcels.append(OrderedParcel(label=label, sealed=sealed, proof=proof))
            self._note_delivery(step, ref, sender=ref.sender, recipient=site)
        log.info("round %d: %s task to %s with %d sealed organs", step.round, step.kind, site, len(parcels))
        return Order(
            site=site,
            task=task,
            parcels=tuple(parcels),
            log=None if log_now is None else self._growth(site, log_now),
            receipt=self.state.receipt(site),
        )

    def _growth(self, site: str, log_now: LogFolder) -> bytes:
        """The newest checkpoint, and the proof that the log grew from what the site has seen."""
        size = self._log_sent[site] = log_now.checkpoint.size
        return log_now.consistency_text(min(self._log_sizes.pop(site, 0), size))

    def saw_log(self, site: str, *, size: int) -> None:
        """A site says, signed, up to which size it has seen the log."""
        self._log_sizes[site] = size

    def uncertain(self) -> set[str]:
        """Sites that were sent the log's growth and gave no good answer since: nobody knows what they remember."""
        return set() if self.log is None else set(self.plan.sites) - set(self._log_sizes)

    def accept(self, step: Step, site: str, reply: Reply, *, seconds: float, now: datetime) -> Status:
        """Count a reply. Never raises for anything that a site may send: a bad answer is noted under its code."""
        status, code, digest, size = self._judge(step, site, reply, now=now)
        answered = Answered(
            run=step.run,
            round=step.round,
            kind=step.kind,
            site=site,
            status=status,
            code=code,
            sealed_sha256=digest,
            size_bytes=size,
            seconds=seconds,
        )
        if status in ("sealed", "received") and site in self._log_sent:
            self._log_sizes[site] = self._log_sent.pop(site)
        if reply.receipt is not None:
            self._keep_receipt(site, reply.receipt, now=now)
        if not self.state.answer(answered):
            log.info("round %d: %s sent an answer that was counted before", step.round, site)
            return status
        log.info(
            "round %d: %s answered %s%s in %.1f s", step.round, site, status, f" ({code})" if code else "", seconds
        )
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
        """End a step: silent sites are noted, and in mode trusted the aggregate is made and sealed.

        Raises:
            TooFewAnswers: fewer organs than the plan's `min_answers`; the step stays open for a later start.
        """
        for site in self.waiting_for(step):
            if site not in {one.site for one in self.state.answers(step.run, step=step)}:
                self.accept(step, site, Reply(refused="silent"), seconds=0.0, now=now)
        good = [one for one in self.state.answers(step.run, step=step) if one.status == "sealed"]
        if step.kind == "train":
            if len(good) < self.plan.min_answers:
                raise TooFewAnswers(
                    where=f"round {step.round}",
                    expected=f"at least {self.plan.min_answers} sealed organs",
                    got=str(len(good)),
                    hint="nothing is lost: start the coordinator again when more sites are there",
                )
            if self.plan.mode == "trusted":
                self._aggregate(step, good, now=now)
        self.state.close(step)
        log.info("round %d: %s is over with %d sealed organs", step.round, step.kind, len(good))

    def _judge(
        self, step: Step, site: str, reply: Reply, *, now: datetime
    ) -> tuple[Status, str | None, str | None, int]:
        if reply.refused is not None:
            return ("silent" if reply.refused == "silent" else "refused"), clean_code(reply.refused), None, 0
        if step.kind == "receive":
            return (
                ("received", None, None, 0) if reply.received is not None else ("bad-answer", "wrong-answer", None, 0)
            )
        try:
            digest, size = self._store(step, site, reply, now=now)
        except NotFedError as error:
            log.warning("round %d: %s: %s", step.round, site, error)
            return "bad-answer", error.code, None, 0
        return "sealed", None, digest, size

    def _store(self, step: Step, site: str, reply: Reply, *, now: datetime) -> tuple[str, int]:
        if reply.sealed is None or reply.label is None or len(reply.sealed) > self.plan.max_parcel_bytes:
            raise _wrong("one sealed organ and its label", "something else")
        digest = hashlib.sha256(reply.sealed).hexdigest()
        label = self.bank.check(reply.sealed, label=reply.label, roster=self.roster, now=now)
        recipients = [name for name in self.plan.recipients() if name != site]
        expected = (site, self.plan.federation, step.round, recipients)
        if (label.sender, label.federation, label.round, list(label.to)) != expected:
            raise _wrong(f"a label from {site} for round {step.round} to {', '.join(recipients)}", "another label")
        if any(
            one.sealed_sha256 == digest and (one.round, one.site) != (step.round, site)
            for one in self.state.answers(step.run)
        ):
            raise _wrong("an organ that was not counted before", "the same one again")
        self.bank.put(reply.sealed, label=reply.label, roster=self.roster, now=now)
        if self.log is not None:
            self.log.enter(reply.label, now=now)
        ref = ParcelRef(sender=site, sealed_sha256=digest, size_bytes=len(reply.sealed), weight=1.0)
        self._note_delivery(step, ref, sender=site, recipient=self.plan.name)
        return digest, len(reply.sealed)

    def _task(self, step: Step, *, now: datetime) -> bytes:
        """The step's task: the one that went out before, while it is valid, else a fresh one."""
        known = self.state.task(step, now=now)
        if known is not None:
            return known
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
            base_sha256=plan.base_sha256,
            span=plan.span,
            training=plan.training,
            privacy=plan.privacy,
            sites=tuple(plan.sites),
            recipients=tuple(plan.recipients()),
            parcels=tuple(self._parcels(step)),
            coordinator=plan.name,
            issued=issued,
            expires=issued + TASK_VALIDITY,
            roster_version=self.roster.version,
        )
        line = sign_task(task, signer=self._signer)
        self.state.issue(step, task=line, expires=task.expires)
        return line

    def _parcels(self, step: Step) -> list[ParcelRef]:
        """The sealed organs that count for the round before, by sender."""
        before = Step(run=step.run, round=step.round if step.kind == "receive" else step.round - 1, kind="train")
        if before.round == 0:
            return []
        if self.plan.mode == "trusted":
            aggregate = self.state.aggregate(step.run, before.round)
            if aggregate is None:
                raise TooFewAnswers(
                    where=f"round {before.round}",
                    expected="its aggregate",
                    got="none",
                    hint="start the coordinator again",
                )
            return [ParcelRef(sender=self.plan.name, sealed_sha256=aggregate[0], size_bytes=aggregate[1], weight=1.0)]
        good = [
            one for one in self.state.answers(step.run, step=before) if one.status == "sealed" and one.sealed_sha256
        ]
        return [
            ParcelRef(
                sender=one.site,
                sealed_sha256=str(one.sealed_sha256),
                size_bytes=one.size_bytes,
                weight=self.plan.weights.get(one.site, 1.0),
            )
            for one in sorted(good, key=lambda one: one.site)
        ]

    def _aggregate(self, step: Step, good: list[Answered], *, now: datetime) -> None:
        if self.state.aggregate(step.run, step.round) is not None:
            return
        from not_fed.coordinator.trusted import aggregate  # torch and a decryption key, in this mode only

        sealed, label = aggregate(
            good,
            plan=self.plan,
            round_number=step.round,
            bank=self.bank,
            home=self._home,
            roster=self.roster,
            signer=self._signer,
            now=now,
        )
        self.bank.put(sealed, label=label, roster=self.roster, now=now)
        if self.log is not None:
            self.log.enter(label, now=now)
        digest = hashlib.sha256(sealed).hexdigest()
        self.state.set_aggregate(step.run, step.round, sealed_sha256=digest, size_bytes=len(sealed))
        log.info("round %d: aggregate of %d organs sealed to every site", step.round, len(good))

    def _note_delivery(self, step: Step, ref: ParcelRef, *, sender: str, recipient: str) -> None:
        kind: DeliveryKind = "aggregate" if sender == self.plan.name else "organ"
        made_in = step.round - 1 if step.kind == "train" and recipient != self.plan.name else step.round
        self.state.deliver(
            Delivered(
                run=step.run,
                round=made_in,
                kind=kind,
                sender=sender,
                recipient=recipient,
                sealed_sha256=ref.sealed_sha256,
                size_bytes=ref.size_bytes,
            )
        )


def clean_code(code: object) -> str:
    """A site's code when it looks like one; whoever is connected may send anything, lines for the log included."""
    return code if isinstance(code, str) and len(code) <= 64 and _CODE.fullmatch(code) else "bad-code"


def _wrong(expected: str, got: str) -> WrongAnswer:
    return WrongAnswer(where="answer", expected=expected, got=got, hint="ask the site; the round goes on without it")
