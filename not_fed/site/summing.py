"""A site's part in a secure sum, on its own disk: an update instead of an organ, help for others, a vote on the result.

What it may send is decided by `aggregation.secure` from the stewards' plan; here its files are kept. A masked vector
and its papers are on disk before the promise that they are the only ones, so that a site that is killed in between
sends the same again, or may still make others because nothing has left.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from not_fed import files
from not_fed.aggregation.secure import Ring, SiteSum, SumLedger, Uploaded
from not_fed.aggregation.secure.server import check_total, check_words
from not_fed.aggregation.secure.site import NotTheSignedPlan
from not_fed.envelope.label import write_label
from not_fed.envelope.papers import AnswerPapers, RoundPapers
from not_fed.envelope.passport import new_passport
from not_fed.envelope.seal import VALID_FOR
from not_fed.envelope.summing import VECTOR_HEAD, Contribution, SumCall, active_sha256, start_sha256
from not_fed.envelope.task import Task, TotalRef
from not_fed.errors import BudgetError, TrustError
from not_fed.organ.anatomy import Span
from not_fed.organ.change import change, count, move
from not_fed.organ.checkpoint import Place
from not_fed.organ.extract import describe
from not_fed.organ.merge import describe_sum
from not_fed.organ.organ import read_organ
from not_fed.site.arrivals import Gathered
from not_fed.site.job import Job
from not_fed.site.making import Made, public_numbers, train_organ
from not_fed.site.parcels import Parcel
from not_fed.site.sumkeys import sums
from not_fed.trust.plans import SumPlan


class OtherStartCalled(TrustError):
    """The call of a secure sum is about another start than the one that came with the task."""

    code = "sum-other-start"


class VectorGone(BudgetError):
    """This site's masked update for a call was sent before, and is not here any more: no second one is made."""

    code = "sum-vector-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a site sends in a step of a secure sum.

    Attributes:
        vector, label: masked words and the relay's label for them; None where papers alone are asked for.
    """

    vector: Path | None
    label: bytes | None
    papers: AnswerPapers
    notes: Mapping[str, object]


def plan_of(job: Job) -> SumPlan:
    """The stewards' plan for this run.

    Raises:
        NotTheSignedPlan: the roster has none, or the task names other sites (who would vote), another coordinator,
            other rounds, layers, base or quorum than it.
    """
    plan, task = job.roster.plans.get(job.task.run), job.task
    asked = (tuple(sorted(task.sites)), task.coordinator, task.rounds, task.base_sha256, task.spans, task.quorum)
    if plan is None or asked != (
        plan.sites, plan.coordinator, plan.rounds, plan.base_sha256, plan.spans, plan.quorum,
    ):  # fmt: skip
        raise NotTheSignedPlan(
            where=f"run {task.run}", expected="a plan in the roster that says the same as the task",
            got="none" if plan is None else "another", hint="nothing was done; ask the stewards: not-fed roster show",
        )  # fmt: skip
    return plan


def send_update(job: Job, began: Gathered, papers: RoundPapers) -> Sent:
    """Train, and send the change under masks.

    Raises:
        NotTheSignedPlan, OtherStartCalled: before any training. What training raises, and `SiteSum.upload`.
    Proved by: tests/journeys/test_federation_sum.py
    """
    plan, call = plan_of(job), _call(job)
    _check_call(job, call, began)
    with sums(job.home, job.state) as ledger:
        summing = _site_sum(job, plan, ledger)
        summing.check(call)
        promised = ledger.label_of(call)
        if promised is not None:
            return _again(job, call, promised)
        made = train_organ(job, start=began.start, body=began.body)
        return _mask(job, summing, call, made, began, papers)


def send_help(job: Job, papers: RoundPapers) -> Sent:
    """The sum of the masks that this site carries.

    Raises:
        NotTheSignedPlan, and `SiteSum.help`.
    """
    call = _call(job)
    _check_length(job, call)
    _check_set(job, call, papers)
    out = _outbox(job) / f"help-{call.sha256}.vector"
    with sums(job.home, job.state) as ledger, files.new_file(out, overwrite=True) as file:
        helped = _site_sum(job, plan_of(job), ledger).help(
            call, labels=papers.labels, capsules_to_me=papers.capsules, sink=file.write
        )
    return Sent(
        vector=out, label=_relay_label(job, out, helped.vector_sha256),
        papers=AnswerPapers(statement=helped.statement), notes={"helped": len(papers.labels)},
    )  # fmt: skip


def send_shares(job: Job, papers: RoundPapers) -> Sent:
    """This site's shares in the place of lost helpers; raises as `SiteSum.reveal`."""
    call = _call(job)
    _check_set(job, call, papers)
    with sums(job.home, job.state) as ledger:
        statement = _site_sum(job, plan_of(job), ledger).reveal(
            call, labels=papers.labels, capsules_to_me=papers.capsules, missing=job.task.missing
        )
    return Sent(
        vector=None, label=None, papers=AnswerPapers(statement=statement), notes={"revealed": list(job.task.missing)}
    )


def read_blind(job: Job, total: TotalRef, began: Gathered, vector: Parcel, papers: RoundPapers) -> Path:
    """The aggregate behind a blind sum, as an organ file that is the same at every site.

    Args:
        began: what the summed round began from.
    Raises:
        OtherStartCalled: this site does not have what that round began from. BadSumPaper, BadCapsule, RoundKeyGone;
        MasksRemain, SumImplausible: what came is not the sum of those uploads.
    """
    plan, call = plan_of(job), total.call
    _check_call(job, call, began)
    if active_sha256(call.sha256, papers.labels) != total.active_sha256:
        raise NotTheSignedPlan(
            where="blind sum", expected="the uploads that the task names", got="others", hint="nothing was opened"
        )
    ring = Ring.of(plan)
    if total.size_bytes != ring.vector_bytes(call.parameters):
        raise NotTheSignedPlan(
            where="blind sum", expected=f"{ring.vector_bytes(call.parameters):,} bytes", got=f"{total.size_bytes:,}",
            hint="nothing was fetched",
        )  # fmt: skip
    with vector.on_disk(job.home.private_folder("inbox")) as path:
        words = np.fromfile(path, dtype=ring.dtype, offset=len(VECTOR_HEAD))
    with sums(job.home, job.state) as ledger:
        uploads = _site_sum(job, plan, ledger).unblind(
            call, labels=papers.labels, capsules_to_me=papers.capsules, total=words
        )
    check_words(words, sites=len(papers.labels), where=f"round {call.round}")
    weight = check_total(words, plan=plan, sites=len(papers.labels), where=f"round {call.round}")
    span = plan.span_of(call.round)
    out = job.organs / f"aggregate-{call.round}.organ"
    out.unlink(missing_ok=True)
    start = _places(job, began, span)
    move(
        start, by=lambda first, last: ring.mean(words[first:last], weight=weight), out=out,
        metadata=describe_sum(describe(job.base, Span(*span)), uploads),
    )  # fmt: skip
    return out


def forget_round_keys(job: Job) -> None:
    """The run is over: no key of its rounds is needed any more."""
    plan = job.roster.plans.get(job.task.run)
    if plan is not None:
        with sums(job.home, job.state) as ledger:
            ledger.close(plan.sha256, before=plan.rounds + 1)


def start_of(task: Task, began: Gathered) -> str:
    """How a call names what this site was told to begin from."""
    digests = {span: read_organ(path).sha256 for span, path in began.organs.items()}
    return start_sha256(task.base_sha256, digests)


def _mask(
    job: Job, summing: SiteSum, call: SumCall, made: Made, began: Gathered, papers: RoundPapers
) -> Sent:  # fmt: skip
    out = _outbox(job) / f"{call.sha256}.vector"
    with ExitStack() as closing:
        file = closing.enter_context(files.new_file(out, overwrite=True))

        def keep(uploaded: Uploaded) -> None:
            closing.close()
            files.write_atomic(_papers_file(job, call), _to_json(uploaded), overwrite=True)

        uploaded = summing.upload(
            call, keys=papers.keys, change=change(made.organ.places, start=_places(job, began, job.task.span)),
            sink=file.write, keep=keep, weight=_weight(job, made), contribution=_contribution(job, made),
        )  # fmt: skip
    notes = {
        **made.notes, "clipped": uploaded.clipped, "parameters": call.parameters,
        "sent_bytes": out.stat().st_size + sum(len(data) for data in uploaded.capsules.values()),
    }  # fmt: skip
    return _sent(job, out, uploaded, notes)


def _sent(job: Job, out: Path, uploaded: Uploaded, notes: Mapping[str, object]) -> Sent:
    return Sent(
        vector=out, label=_relay_label(job, out, uploaded.vector_sha256), notes=notes,
        papers=AnswerPapers(statement=uploaded.label, capsules=uploaded.capsules),
    )  # fmt: skip


def _again(job: Job, call: SumCall, promised: str) -> Sent:
    """The upload that was promised, whole, from an attempt that was cut off before its answer left."""
    path, out = _papers_file(job, call), _outbox(job) / f"{call.sha256}.vector"
    uploaded = _from_json(path) if path.is_file() and out.is_file() else None
    if uploaded is None or hashlib.sha256(uploaded.label).hexdigest() != promised:
        raise VectorGone(
            where=f"round {call.round}", expected="the masked update that was sent", got="none",
            hint="nothing was sent; let the others go on without this site",
        )  # fmt: skip
    return _sent(job, out, uploaded, {"again": True})


def _site_sum(job: Job, plan: SumPlan, ledger: SumLedger) -> SiteSum:
    return SiteSum(plan=plan, signer=job.signer, opener=job.opener, roster=job.roster, ledger=ledger, now=job.now)


def _call(job: Job) -> SumCall:
    call = job.task.call
    if call is None:
        raise NotTheSignedPlan(where="task", expected="a call", got="none", hint="nothing was done")
    return call


def _check_call(job: Job, call: SumCall, began: Gathered) -> None:
    _check_length(job, call)
    told = start_of(job.task, began)
    if call.start_sha256 != told:
        raise OtherStartCalled(
            where=f"call of round {call.round}, field start_sha256", expected=told[:16], got=call.start_sha256[:16],
            hint="nothing was sent; others may have been told to begin from something else: ask them",
        )  # fmt: skip


def _check_length(job: Job, call: SumCall) -> None:
    """The coordinator cannot have this site compute masks without end."""
    expected = count(job.base.span_places(Span(*job.task.span_of(call.round))))
    if call.parameters != expected:
        raise NotTheSignedPlan(
            where=f"call of round {call.round}", expected=f"{expected:,} numbers, as the layers have",
            got=f"{call.parameters:,}", hint="nothing was done",
        )  # fmt: skip


def _check_set(job: Job, call: SumCall, papers: RoundPapers) -> None:
    if active_sha256(call.sha256, papers.labels) != job.task.active_sha256:
        raise NotTheSignedPlan(
            where="set of uploads", expected="the one that the signed task names", got="another",
            hint="nothing was sent; keep the message: it contradicts what the coordinator signed",
        )  # fmt: skip


def _places(job: Job, began: Gathered, span: tuple[int, int]) -> Mapping[str, Place]:
    organ = began.organs.get(span)
    return job.base.span_places(Span(*span)) if organ is None else read_organ(organ).places


def _weight(job: Job, made: Made) -> int:
    """How often this site's update counts: as its own policy says; the number itself stays inside the sum."""
    chosen = job.policy.sum_weight
    if chosen != "records":
        return chosen
    return max(1, min(int(made.numbers["records"] or 1), plan_of(job).max_weight))


def _contribution(job: Job, made: Made) -> Contribution:
    """What a passport would say of the organ, without its digest: that could confirm a guess at the records."""
    passport = new_passport(
        made.organ.path, author=job.policy.name, federation=job.task.federation, round_number=job.task.round,
        now=job.now, public=public_numbers(job, made), organ_sha256=made.organ.sha256,
    )  # fmt: skip
    return Contribution(
        dp=passport.dp, audit=passport.audit, releases=passport.releases, ledger_head=passport.ledger_head
    )


def _relay_label(job: Job, vector: Path, sha256: str) -> bytes:
    return write_label(
        federation=job.task.federation, round_number=job.task.round, signer=job.signer, to=[job.task.coordinator],
        issued=job.now, expires=job.now + VALID_FOR, sealed_sha256=sha256, size_bytes=vector.stat().st_size,
    )  # fmt: skip


def _outbox(job: Job) -> Path:
    return job.home.private_folder("outbox")


def _papers_file(job: Job, call: SumCall) -> Path:
    return _outbox(job) / f"{call.sha256}.papers"


def _to_json(uploaded: Uploaded) -> bytes:
    value = {
        "label": uploaded.label.decode("ascii"), "vector_sha256": uploaded.vector_sha256, "clipped": uploaded.clipped,
        "capsules": {name: b64encode(data).decode("ascii") for name, data in uploaded.capsules.items()},
    }  # fmt: skip
    return json.dumps(value).encode()


def _from_json(path: Path) -> Uploaded:
    value = json.loads(path.read_bytes())
    return Uploaded(
        label=value["label"].encode("ascii"), vector_sha256=value["vector_sha256"], clipped=value["clipped"],
        capsules={name: b64decode(data) for name, data in value["capsules"].items()},
    )  # fmt: skip
