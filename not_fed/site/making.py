"""A site's own organ of a round: trained under the policy's privacy plan, claimed in a passport, sealed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from not_fed import files
from not_fed.envelope.label import label_path
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import Passport, issue_passport, new_passport
from not_fed.envelope.seal import Sealed, seal_organ
from not_fed.organ import train as training
from not_fed.organ.data import read_records
from not_fed.organ.organ import OrganInfo
from not_fed.privacy.accounting import DpPlan, plan_dp
from not_fed.site.job import Job
from not_fed.site.prefix_cache import PREFIX_FOLDER, PrefixCache, forget_prefixes
from not_fed.site.state import KeptOrgan


def make_organ(job: Job, *, start: Path | None) -> tuple[Sealed, Mapping[str, object]]:
    """Train from `start`, sign and seal.

    Returns:
        the sealed organ, and the site's own notes (losses among them), which stay.
    """
    plan = fix_plan(job)
    trained = _train(job, start, plan)
    began = time.monotonic()
    passport = issue_passport(_passport(job, trained), signer=job.signer)
    files.write_atomic(passport_path(trained.organ.path), passport + b"\n", overwrite=True)
    sealed = _seal(job, trained.organ, passport)
    seconds = time.monotonic() - began
    job.state.keep(
        KeptOrgan(
            sealed_sha256=sealed.sha256,
            run=job.task.run,
            round=job.task.round,
            sender=job.policy.name,
            file=trained.organ.path.name,
            organ_sha256=trained.organ.sha256,
            seconds=seconds,
        )
    )
    return sealed, _notes(trained, plan) | {"seal_seconds": seconds, "sealed_bytes": sealed.size_bytes}


def fix_plan(job: Job) -> DpPlan | None:
    """The run's one privacy plan: the policy's constants, fixed before the first training, for all rounds.

    Its noise is such that all rounds of the run together stay within epsilon.

    Raises:
        BadPlan, WeakEpsilon, NoiseOutOfReach: the policy's constants cannot reach it; nothing was trained.
    Proved by: tests/journeys/test_federation_bank.py::test_all_rounds_together_cost_the_epsilon_of_the_policy
    """
    own, proposed = job.policy.privacy, job.task.privacy
    if own is None or proposed is None:
        return None
    known = job.state.plan(job.task.run)
    if known is not None:
        return DpPlan(**known)
    plan = plan_dp(
        epsilon=min(own.max_epsilon, proposed.epsilon),
        delta=own.delta,
        sample_rate=own.sample_rate,
        steps=math.ceil(job.task.training.epochs / own.sample_rate),
        max_grad_norm=own.max_grad_norm,
        divisor=own.divisor,
        runs=job.task.rounds,
    )
    job.state.fix_plan(job.task.run, asdict(plan))
    return plan


def _train(job: Job, start: Path | None, plan: DpPlan | None) -> training.Trained:
    wishes, out = job.task.training, job.organs / f"own-{job.task.round}.organ"
    out.unlink(missing_ok=True)  # left by an attempt whose answer never went out
    settings = training.TrainSettings(
        span=job.span,
        lr=wishes.lr,
        epochs=wishes.epochs,
        batch_tokens=wishes.batch_tokens,
        max_tokens=wishes.max_tokens,
        warmup=wishes.warmup,
        seed=wishes.seed,
        dp=plan,
    )
    records = read_records(job.home.inside(job.policy.data), text_field=job.policy.text_field or "text")
    return training.train(
        job.base,
        records=records,
        init=start,
        settings=settings,
        out=out,
        progress=job.progress,
        prefix_store=_prefix_cache(job),
    )


def _prefix_cache(job: Job) -> PrefixCache | None:
    if not job.policy.cache_prefix:
        return None
    cache = job.home.private_folder("cache")
    forget_prefixes(cache, keep_run=job.task.run)
    return PrefixCache(job.home.private_folder(f"cache/{PREFIX_FOLDER}") / job.task.run, opener=job.opener)


def _passport(job: Job, trained: training.Trained) -> Passport:
    """What the site claims about the organ; of the numbers it measured, only those that its policy names."""
    measured = {
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        "records": float(trained.records),
        "steps": float(trained.steps),
        "tokens": float(trained.tokens),
    }
    metrics = {name: measured[name] for name in job.policy.metrics_that_may_leave}
    return new_passport(
        trained.organ.path,
        author=job.policy.name,
        federation=job.task.federation,
        round_number=job.task.round,
        now=job.now,
        metrics={name: value for name, value in metrics.items() if value is not None},
        organ_sha256=trained.organ.sha256,
    )


def _seal(job: Job, organ: OrganInfo, passport: bytes) -> Sealed:
    out = job.home.private_folder("outbox") / f"{job.task.id}.sealed"
    for left in (out, label_path(out)):
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


def _notes(trained: training.Trained, plan: DpPlan | None) -> dict[str, object]:
    """For the site's own eyes; a loss that is not a number (an empty DP sample) is None."""
    return {
        "organ": trained.organ.path.name,
        "loss_curve": [loss if math.isfinite(loss) else None for loss in trained.loss_curve],
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        "records": trained.records,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "prefix_seconds": trained.prefix_seconds,
        "epsilon": None if plan is None else plan.epsilon().value,
        "delta": None if plan is None else plan.delta,
    }
