"""A site's own organ of a round: trained under the policy's privacy plan, claimed in a passport, sealed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from not_fed import files
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import Passport, issue_passport, new_passport
from not_fed.envelope.seal import Sealed, seal_organ
from not_fed.errors import BudgetError
from not_fed.organ import train as training
from not_fed.organ.claims import plan_of
from not_fed.organ.data import Records, read_data
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.privacy.accounting import DpPlan, NoisedRelease, plan_dp
from not_fed.site.account import RoundAccount, account_notes, open_ledger, open_round, require_unspent
from not_fed.site.job import Job
from not_fed.site.policy import PUBLIC_CONSTANTS, PrivacyPolicy
from not_fed.site.prefix_cache import PREFIX_FOLDER, PrefixCache, forget_prefixes
from not_fed.site.state import KeptOrgan, MadeOrgan


class OwnOrganGone(BudgetError):
    """A round that was answered is asked for again, and its organ is not here any more: no second one is made."""

    code = "own-organ-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A round's organ, and what the site knows about it.

    Attributes:
        numbers: computed from the records; what of them may leave is the policy's decision.
        notes: for the site's own eyes.
    """

    organ: OrganInfo
    numbers: Mapping[str, float | None]
    notes: Mapping[str, object]


def train_organ(job: Job, *, start: Path | None, body: Sequence[Path] = ()) -> Made:
    """The round's own organ: trained from `start` in the body, or found whole when that was done before."""
    out, origin = job.organs / f"own-{job.task.round}.organ", _Origin(start, tuple(body))
    made = _whole(job, origin, out)
    if made is not None:
        return made
    if job.task.privacy is None or job.policy.privacy is None:
        made = _train_plainly(job, origin, out)
    else:
        made = _train_privately(job, origin, out, job.policy.privacy)
    job.state.note_made(
        MadeOrgan(
            run=job.task.run, round=job.task.round, start=origin.name(), organ_sha256=made.organ.sha256,
            numbers=made.numbers, notes=made.notes,
        )
    )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True)
class _Origin:
    """What training goes on from: an organ of the span (None: the base's own), and those that lie in other layers."""

    start: Path | None
    body: tuple[Path, ...]

    def name(self) -> str:
        """Digests that name it; empty for the base's own layers, all of them."""
        own = "" if self.start is None else read_organ(self.start).sha256
        return " ".join([own or "base", *self.body_digests()]) if self.body else own

    def body_digests(self) -> list[str]:
        """As a manifest has them: from the lowest layer up."""
        return [organ.sha256 for organ in sorted(map(read_organ, self.body), key=lambda organ: organ.span)]


def make_organ(job: Job, *, start: Path | None, body: Sequence[Path] = ()) -> tuple[Sealed, Mapping[str, object]]:
    """Train from `start`, with the body's organs in their layers, sign and seal.

    Returns:
        the sealed organ, and the site's own notes, which stay.
    """
    made = train_organ(job, start=start, body=body)
    began = time.monotonic()
    passport = issue_passport(_passport(job, made), signer=job.signer)
    files.write_atomic(passport_path(made.organ.path), passport + b"\n", overwrite=True)
    sealed = _seal(job, made.organ, passport)
    seconds = time.monotonic() - began
    job.state.keep(
        KeptOrgan(
            sealed_sha256=sealed.sha256,
            run=job.task.run,
            round=job.task.round,
            sender=job.policy.name,
            file=made.organ.path.name,
            organ_sha256=made.organ.sha256,
            seconds=seconds,
        )
    )
    return sealed, {**made.notes, "seal_seconds": seconds, "sealed_bytes": sealed.size_bytes}


def rehearse(job: Job) -> str:
    """What training would be, without any: the base and the records are read, a private plan is computed.

    Raises:
        BaseChanged; what reading the records raises; BadPlan, WeakEpsilon, NoiseOutOfReach: it would be refused.
    """
    task, own = job.task, job.policy.privacy
    told = f"{task.kind}, base {job.base.sha256[:12]}, {len(task.parcels)} sealed organs with it"
    if task.kind == "receive":
        return told
    records = _records(job, unit=own.unit if own and task.privacy is not None else "record")
    told += f", {len(records.texts):,} records read"
    if own is None or task.privacy is None:
        return f"{told}, without differential privacy"
    plan = fix_plan(job, own, records)
    return f"{told}, {plan.steps} private steps, noise multiplier {plan.noise_multiplier:.3g}, per {plan.unit}"


def _whole(job: Job, origin: _Origin, out: Path) -> Made | None:
    """The round's organ when training it has ended before: by an attempt that was killed, or for an earlier answer.

    An answer that was given under an older roster is given again with the very same organ, whatever else is offered to
    start from: another one would tell more about the records.

    Raises:
        OwnOrganGone: the round was answered, and its organ is not there any more as it was.
    Proved by:
        tests/attacks/test_site_asked_again.py::test_other_organs_to_start_from_make_no_other_organ_of_a_round,
        tests/attacks/test_site_asked_again.py::test_an_answered_round_whose_organ_is_lost_is_not_trained_again,
        tests/journeys/test_revoked_in_a_round.py::test_after_a_revocation_kept_organs_are_sealed_again
    """
    task, me = job.task, job.policy.name
    known = job.state.made(task.run, task.round)
    answered = any((one.round, one.sender) == (task.round, me) for one in job.state.organs(task.run))
    organ = read_organ(out) if known is not None and out.is_file() else None
    if known is None or organ is None or organ.sha256 != known.organ_sha256:
        if answered:
            raise OwnOrganGone(
                where=f"organs/{task.run}/{out.name}", expected="the organ that was sent for this round",
                got="none" if organ is None else f"another, {organ.sha256[:12]}",
                hint="nothing was trained or sent; put the file back, or let the others go on without this site",
            )  # fmt: skip
        return None
    if not answered and known.start != origin.name():
        return None
    return Made(organ=organ, numbers=known.numbers, notes=known.notes)


def fix_plan(job: Job, own: PrivacyPolicy, records: Records) -> DpPlan:
    """The run's one privacy plan: the policy's constants, fixed before the first training, for all rounds.

    Its noise is such that all rounds of the run together, and the numbers that leave with them, stay within epsilon.

    Args:
        records: only whether they name people is looked at.
    Raises:
        BadPlan, WeakEpsilon, NoiseOutOfReach: the policy's constants cannot reach it; nothing was trained.
    Proved by: tests/journeys/test_federation_bank.py::test_all_rounds_together_cost_the_epsilon_of_the_policy
    """
    known = job.state.plan(job.task.run)
    if known is not None:
        releases = tuple(NoisedRelease(**release) for release in known.pop("releases"))
        return DpPlan(**known, releases=releases)
    proposed = job.task.privacy
    plan = plan_dp(
        epsilon=own.max_epsilon if proposed is None else min(own.max_epsilon, proposed.epsilon),
        delta=own.delta,
        sample_rate=own.sample_rate,
        steps=math.ceil(job.task.training.epochs / own.sample_rate),
        max_grad_norm=own.max_grad_norm,
        divisor=own.divisor,
        runs=job.task.rounds,
        unit=records.unit,
        records_per_person=own.records_per_person if records.unit == "person" else 1,
        releases=tuple(
            NoisedRelease(name=name, noise_multiplier=noise) for name, noise in sorted(own.releases.items())
        ),
    )
    job.state.fix_plan(job.task.run, asdict(plan))
    return plan


def _train_plainly(job: Job, origin: _Origin, out: Path) -> Made:
    if (own := job.policy.privacy) is not None:
        require_unspent(job.home, records=_records(job, unit=own.unit), policy=own)
    trained = _train(job, origin, out, records=_records(job, unit="record"), plan=None, account=None)
    numbers: dict[str, float | None] = {
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        "records": float(trained.records),
        "steps": float(trained.steps),
        "tokens": float(trained.tokens),
    }
    notes: dict[str, object] = {
        "organ": out.name,
        "loss_curve": trained.loss_curve,
        **numbers,
        "seconds": trained.seconds,
        "prefix_seconds": trained.prefix_seconds,
        "epsilon": None,
        "delta": None,
    }
    return Made(organ=trained.organ, numbers=numbers, notes=notes)


def _train_privately(job: Job, origin: _Origin, out: Path, own: PrivacyPolicy) -> Made:
    """Under the run's plan and its reservation. An attempt that trained, and was cut off before its answer, stands."""
    records = _records(job, unit=own.unit)
    plan, began = fix_plan(job, own, records), time.monotonic()
    organ = _finished(out, plan=plan, origin=origin)
    ledger = open_ledger(job.home, name=job.policy.name, policy=own, receipt=job.receipt)
    if organ is None:
        account = open_round(
            ledger,
            records=records,
            name=Path(job.policy.data).name,
            plan=plan,
            policy=own,
            run=f"{job.task.federation}/{job.task.coordinator}/{job.policy.name}/{job.task.run}",
            later_runs=job.task.rounds - job.task.round,
        )
        organ = _train(job, origin, out, records=records, plan=plan, account=account).organ
        account.close()
    claim = DpClaim.from_training(organ.manifest.training)
    numbers: dict[str, float | None] = {
        "steps": float(plan.steps),
        "records": float(len(records.texts)),
        "people": None if records.people is None else float(len(set(records.people))),
    }
    notes: dict[str, object] = {
        "organ": out.name,
        "steps": plan.steps,
        "seconds": time.monotonic() - began,
        "epsilon": None if claim is None else claim.epsilon,
        "delta": plan.delta,
        "unit": plan.unit,
        "account": account_notes(ledger, records=records, plan=plan, policy=own),
    }
    return Made(organ=organ, numbers=numbers, notes=notes)


def _finished(out: Path, *, plan: DpPlan, origin: _Origin) -> OrganInfo | None:
    """The organ that an attempt at this round left, if it was made by this plan from this start; else it is deleted."""
    if not out.is_file():
        return None
    organ = read_organ(out)
    claim = DpClaim.from_training(organ.manifest.training)
    parents = () if origin.start is None else (read_organ(origin.start).sha256,)
    same = organ.manifest.parents == parents
    same = same and (organ.manifest.training or {}).get("body", []) == origin.body_digests()
    if claim is not None and plan_of(claim) == plan and same:
        return organ
    out.unlink()
    return None


def _train(
    job: Job, origin: _Origin, out: Path, *, records: Records, plan: DpPlan | None, account: RoundAccount | None
) -> training.Trained:
    wishes, own = job.task.training, job.policy.privacy
    if account is None:
        out.unlink(missing_ok=True)  # left by an attempt whose answer never went out
    settings = training.TrainSettings(
        span=job.span,
        lr=wishes.lr,
        epochs=wishes.epochs,
        batch_tokens=wishes.batch_tokens,
        max_tokens=wishes.max_tokens,
        warmup=wishes.warmup,
        seed=wishes.seed,
        rank=wishes.rank,
        proximal=wishes.proximal,
        dp=plan,
        declared_units=own.declared_units if own else None,
    )
    return training.train(
        job.base,
        records=records,
        init=origin.start,
        body=origin.body,
        settings=settings,
        out=out,
        charge=account,
        progress=job.progress,
        prefix_store=_prefix_cache(job),
    )


def _records(job: Job, *, unit: str | None) -> Records:
    return read_data(job.home.inside(job.policy.data), text_field=job.policy.text_field or "text", unit=unit)


def _prefix_cache(job: Job) -> PrefixCache | None:
    if not job.policy.cache_prefix:
        return None
    cache = job.home.private_folder("cache")
    forget_prefixes(cache, keep_run=job.task.run)
    return PrefixCache(job.home.private_folder(f"cache/{PREFIX_FOLDER}") / job.task.run, opener=job.opener)


def _passport(job: Job, made: Made) -> Passport:
    """What the site claims about the organ; of the exact numbers, only those that its policy names."""
    return new_passport(
        made.organ.path,
        author=job.policy.name,
        federation=job.task.federation,
        round_number=job.task.round,
        now=job.now,
        public=public_numbers(job, made),
        organ_sha256=made.organ.sha256,
    )


def public_numbers(job: Job, made: Made) -> dict[str, float]:
    """Exact numbers that leave, because the policy names them."""
    return {name: value for name in _may_leave(job) if (value := made.numbers.get(name)) is not None}


def _may_leave(job: Job) -> set[str]:
    """Names of exact numbers. Where epsilon makes a promise: public constants, and what was decided in so many words.

    Proved by: tests/attacks/test_site_leaks.py::test_only_numbers_that_the_officer_named_leave_exact
    """
    named: set[str] = set(job.policy.metrics_that_may_leave)
    if job.task.privacy is None or job.policy.privacy is None:
        return named
    return (named & PUBLIC_CONSTANTS) | set(job.policy.privacy.public_by_decision)


def _seal(job: Job, organ: OrganInfo, passport: bytes) -> Sealed:
    outbox = job.home.private_folder("outbox")
    out = outbox / f"{job.task.id}.sealed"
    for left in outbox.iterdir():  # of earlier rounds, which the coordinator has closed, and of attempts cut off
        left.unlink(missing_ok=True)
    return seal_organ(
        organ.path,
        snapshot=organ.snapshot,
        passport=passport,
        sender=job.signer,
        recipients=job.recipients(),
        roster=job.roster,
        federation=job.task.federation,
        round_number=job.task.round,
        out=out,
        now=job.now,
    )
