"""A site's judgement of a round's aggregate, by records that nobody trained on: one bit, and what lets it leave.

The bit says something about those records. Either the site's officer lets it leave in so many words
(`public_by_decision`), or it is a comparison with noise, paid for in the ledger before a loss is computed (`charged`).
A site that has neither abstains; what cannot be an organ here is refused without a look at the records.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from not_fed import files
from not_fed.envelope.finite import OrganAbsurd, OrganNotFinite, check_weights
from not_fed.envelope.header import check_organ_header
from not_fed.envelope.vote import ABSTAINS, ACCEPTS, Reason, Vote, sign_vote
from not_fed.errors import BudgetError, FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.body import read_body
from not_fed.organ.data import Records, identify_records, read_data
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.units import Units
from not_fed.privacy.accounting import DpPlan, Unit
from not_fed.privacy.ledger.identity import KEY_BYTES, DataIdentity, HashKey
from not_fed.privacy.ledger.reservation import ReservationOver
from not_fed.privacy.randomness import OperatingSystem, RandomSource
from not_fed.privacy.release import comparison_noise, is_no_worse
from not_fed.site.account import open_ledger
from not_fed.site.job import Job
from not_fed.site.policy import PrivacyPolicy, VotePolicy
from not_fed.site.votebook import Begun, Question, VoteBook

_SOURCE: RandomSource = OperatingSystem()
_PUBLIC_DELTA = 1e-5  # of a comparison that nothing is charged for: a plan has to have one


class HeldOutShared(InputError):
    """Some of the records to vote on are trained on as well, or are about the same people."""

    code = "held-out-shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What this site says about a candidate.

    Attributes:
        candidate_sha256: as this site opened or summed it; None where it could not.
        start_sha256: what it was compared with; None is the base's own span.
        notes: for the site's own eyes: they hold losses.
    """

    reason: Reason
    candidate_sha256: str | None
    start_sha256: str | None
    notes: Mapping[str, object]

    @property
    def accept(self) -> bool:
        """Whether it may be used, as far as this site is concerned."""
        return self.reason == ACCEPTS


def judge(
    job: Job, *, candidate: Path, start: Path | None, body: Sequence[Path] = (), source: RandomSource = _SOURCE
) -> Judged:
    """Compare a candidate with what its round began from, on the held-out records.

    Args:
        start: the organ that the round began from; None is the base's own span.
        body: organs that lie in other layers of the base meanwhile, the same for both.
        source: where randomness comes from; the operating system outside tests.
    Raises:
        VoteTaken: another candidate was judged in this round. HeldOutShared: see there. BaseChanged; what reading the
            records raises. Nothing was spent or said.
    Guarantees: whatever is not finite, or does not fit, is refused without a look at the records. A charged comparison
        is reserved and started in the ledger, durably, before a loss is computed; its noise is drawn once for a round
        and charged once, however often the site is killed or asked. What does not fit the budget is not computed.
    Proved by: tests/unit/test_vote.py::test_a_charged_vote_is_paid_for_before_a_loss_is_computed,
        tests/attacks/test_votes.py::test_a_site_killed_between_charge_and_vote_pays_once_and_says_the_same
    """
    refused = _unusable(job, candidate, body)
    if refused is not None:
        return unjudged(refused, start=start, candidate=candidate)
    question = Question(
        run=job.task.run, round=job.task.round, candidate=read_organ(candidate).sha256, start=_digest_of(start) or ""
    )
    own = job.policy.vote
    if own is None or job.policy.held_out is None:
        return _judged(question, ABSTAINS, {"why": "site.toml lets no vote leave"})
    book = VoteBook(job.home.folder)
    if (known := book.known(question)) is not None and known.reason is not None:
        return _judged(question, known.reason, known.notes)
    records = _held_out(job, job.policy.held_out)
    comparison = functools.partial(_comparison, own, job.policy.privacy, records.unit, source)
    begun = book.begin(question, comparison=comparison)
    organs = _Organs(candidate=candidate, start=start, body=tuple(body))
    try:
        reason, notes = _compare(job, records, organs, begun)
    except BudgetError as error:
        reason, notes = ABSTAINS, {"why": error.code}
    book.end(question, reason=reason, notes=notes)
    return _judged(question, reason, notes)


def unjudged(reason: Reason, *, start: Path | None, candidate: Path | None = None) -> Judged:
    """What a site says of something that it could not read, or that nobody could use: its records were not looked at.

    Args:
        candidate: the organ, where there is one.
    """
    digest = None if candidate is None or reason == "cannot-open" else read_organ(candidate).sha256
    return Judged(reason=reason, candidate_sha256=digest, start_sha256=_digest_of(start), notes={})


def cast(job: Job, judged: Judged, *, proposal_sha256: str) -> bytes:
    """The signed vote, which is all that leaves. Asked again about the same proposal, the very same line.

    Args:
        proposal_sha256: of what was put to the vote, as the task names it.
    """

    def sign() -> bytes:
        vote = Vote(
            v=1, federation=job.task.federation, run=job.task.run, round=job.task.round,
            coordinator=job.task.coordinator, site=job.policy.name, proposal_sha256=proposal_sha256,
            start_sha256=judged.start_sha256, candidate_sha256=judged.candidate_sha256, accept=judged.accept,
            reason=judged.reason, issued=job.now,
        )  # fmt: skip
        return sign_vote(vote, signer=job.signer)

    book = VoteBook(job.home.folder)
    return book.cast(run=job.task.run, round_number=job.task.round, proposal=proposal_sha256, sign=sign)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Organs:
    candidate: Path
    start: Path | None
    body: tuple[Path, ...]

    @property
    def before(self) -> list[Path]:
        return [*self.body, *([] if self.start is None else [self.start])]

    @property
    def after(self) -> list[Path]:
        return [*self.body, self.candidate]

    @property
    def span(self) -> Span:
        """The layers that any of them lies in."""
        spans = [read_organ(path).span for path in (*self.before, self.candidate)]
        return Span(min(span.start for span in spans), max(span.stop for span in spans))


def _unusable(job: Job, candidate: Path, body: Sequence[Path]) -> Reason | None:
    """Why a candidate is no organ for this place, by itself and the base alone."""
    try:
        organ = read_organ(candidate)
    except InputError:
        return "cannot-open"
    try:
        read_body([*body, candidate], base=job.base)
        if organ.span != job.span:
            return "does-not-fit"
        _require_finite(organ)
    except FitError:
        return "does-not-fit"
    except (OrganNotFinite, OrganAbsurd):
        return "not-finite"
    return None


def _require_finite(organ: OrganInfo) -> None:
    with files.open_regular(organ.path) as stream:
        header = check_organ_header(stream, organ.size_bytes)

        def read_at(offset: int, into: memoryview) -> None:
            stream.seek(offset)
            stream.readinto(into)  # a buffered reader fills it, and the header has checked how much there is

        check_weights(header, read_at=read_at)


def _held_out(job: Job, path: str) -> Records:
    """The held-out records, none of which is trained on.

    Raises:
        HeldOutShared: a record, or a person where people are named, is on both sides, in whatever spelling.
    Proved by: tests/unit/test_vote.py::test_records_that_are_trained_on_are_not_voted_on
    """
    unit = None if job.policy.privacy is None else job.policy.privacy.unit
    read = functools.partial(read_data, text_field=job.policy.text_field or "text", unit=unit)
    records = read(job.home.inside(path))
    key = HashKey(secrets.token_bytes(KEY_BYTES))  # for this comparison alone
    mine, trained = (_identity(key, one) for one in (records, read(job.home.inside(job.policy.data))))
    if shared := set(mine.members) & set(trained.members):
        who = "people" if any(member.startswith(b"p") for member in shared) else "records"
        raise HeldOutShared(
            where="site.toml, field held_out", expected="records of which none is trained on, and none of whose people",
            got=f"{who} that are in both", hint="keep them out of data; nothing was spent, and no vote was cast",
        )  # fmt: skip
    return records


def _identity(key: HashKey, records: Records) -> DataIdentity:
    return key.identify(records.texts, records.people)


def _comparison(own: VotePolicy, privacy: PrivacyPolicy | None, unit: Unit, source: RandomSource) -> dict[str, Any]:
    """All that an answer will depend on besides records and organs; the noise, where there is one, is drawn here."""
    plan = DpPlan(
        sample_rate=1.0, steps=1, noise_multiplier=own.noise_multiplier, max_grad_norm=own.clip, divisor=1.0,
        delta=_PUBLIC_DELTA if privacy is None else privacy.delta, unit=unit,
    )  # fmt: skip
    noise = None
    if own.allowed == "charged":
        noise = comparison_noise(clip=own.clip, noise_multiplier=own.noise_multiplier, source=source)
    return {"plan": asdict(plan), "tolerance": own.tolerance, "noise": noise}


def _compare(job: Job, records: Records, organs: _Organs, begun: Begun) -> tuple[Reason, dict[str, object]]:
    """Prepare, pay, and only then look.

    Raises:
        BudgetError: nothing was computed, or this round was paid for by another comparison.
    """
    comparison = begun.comparison
    assert comparison is not None, "it is kept until the judgement has ended"
    plan = DpPlan(**{**comparison["plan"], "releases": ()})
    evaluator = Evaluator(
        job.base, records=records.texts, span=organs.span, max_tokens=job.task.training.max_tokens,
        progress=job.progress,
    )  # fmt: skip
    units = Units.of(records, evaluator.lengths, plan=plan)
    if comparison["noise"] is not None:
        _pay(job, records, plan, is_new=begun.is_new)
    evaluator.put_in(organs.before)
    before = evaluator.mean_losses()
    evaluator.put_in(organs.after)
    after = evaluator.mean_losses()
    with np.errstate(invalid="ignore"):  # infinity less infinity counts as a rise
        changes = units.means(after - before)
    good = is_no_worse(
        changes, tolerance=comparison["tolerance"], clip=plan.max_grad_norm, noise=comparison["noise"]
    )  # fmt: skip
    notes: dict[str, object] = {
        "loss_before": float(before.mean()), "loss_after": float(after.mean()), "records": len(records.texts),
        "epsilon": None if comparison["noise"] is None else plan.epsilon().value, "delta": plan.delta,
        "unit": plan.unit,
    }  # fmt: skip
    return (ACCEPTS if good else "worse"), notes


def _pay(job: Job, records: Records, plan: DpPlan, *, is_new: bool) -> None:
    """Charge one comparison of this round, whatever has happened before; durable when it returns.

    Raises:
        BudgetSpent and its kin: it is not covered. ReservationOver: this round was paid for, and its noise is gone:
            somebody put back an older state of this home.
    """
    own = job.policy.privacy
    assert own is not None, "the policy requires it of a charged vote"
    ledger = open_ledger(job.home, name=job.policy.name, policy=own, receipt=job.receipt)
    name, data = Path(str(job.policy.held_out)).name, identify_records(ledger, records, unit=plan.unit)
    ledger.set_budget(data, name=name, unit=plan.unit, epsilon=own.budget, delta=own.delta, may_raise=False)
    run = f"{job.task.federation}/{job.task.coordinator}/{job.policy.name}/{job.task.run}/vote-{job.task.round}"
    try:
        held = ledger.reserve(data, name=name, plan=plan, run=run, purpose="metric", cap=own.budget)
    except ReservationOver:
        if is_new:
            raise
        return  # an attempt that was killed has paid, and this is its noise
    if not held.started_steps:
        held.start_step(remaining=0)
    held.commit()


def _judged(question: Question, reason: Reason, notes: Mapping[str, object]) -> Judged:
    return Judged(
        reason=reason, candidate_sha256=question.candidate, start_sha256=question.start or None, notes=notes
    )  # fmt: skip


def _digest_of(organ: Path | None) -> str | None:
    return None if organ is None else read_organ(organ).sha256
