"""What each kind of task comes to at a site: train, help, reveal, vote, receive.

Refusing needs none of this; torch and the model are loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from not_fed.envelope.finite import OrganAbsurd, OrganNotFinite
from not_fed.envelope.papers import AnswerPapers, RoundPapers
from not_fed.envelope.task import TotalRef
from not_fed.errors import FitError, InputError, TrustError
from not_fed.organ.organ import read_organ
from not_fed.site.account import receipt_for
from not_fed.site.answer import Answer
from not_fed.site.arrivals import Gathered, gather, take_candidate
from not_fed.site.job import Job
from not_fed.site.log_file import note
from not_fed.site.making import make_organ
from not_fed.site.parcels import Parcel
from not_fed.site.state import KeptSum
from not_fed.site.summing import (
    Sent,
    forget_round_keys,
    plan_of,
    read_blind,
    send_help,
    send_shares,
    send_update,
)
from not_fed.site.verdicts import check_votes
from not_fed.site.voting import Judged, cast, judge, unjudged


class NoVector(TrustError):
    """A task names a blind sum that did not come with it."""

    code = "no-vector"


Done = tuple[Answer, dict[str, Any]]


def do(job: Job, parcels: Sequence[Parcel], papers: RoundPapers) -> Done:
    """Do what a task asks.

    Returns:
        all that leaves, and the site's own notes, which stay.
    """
    task = job.task
    if task.kind in ("help", "reveal"):
        return _of_sum(job, (send_help if task.kind == "help" else send_shares)(job, papers))
    organs = [parcel for parcel in parcels if task.total is None or parcel.sha256 != task.total.sha256]
    vector = next((parcel for parcel in parcels if parcel not in organs), None)
    began = _began(job, organs, vector, papers)
    if task.kind == "vote":
        return _vote(job, organs, vector, began, papers)
    if task.kind == "train" and task.mode == "secure-sum":
        return _of_sum(job, send_update(job, began, papers))
    if task.kind == "receive" and task.mode == "secure-sum":
        forget_round_keys(job)
    return _organ(job, began)


def _organ(job: Job, began: Gathered) -> Done:
    notes: dict[str, Any] = {"aggregate": began.start.name if began.start else None}
    sealed = None
    if job.task.kind == "train":
        sealed, made = make_organ(job, start=began.start, body=began.body)
        notes |= made
    answer = Answer(
        sealed=sealed.path if sealed else None, label=sealed.label if sealed else None, received=len(job.opened),
        left_out=tuple(job.left_out), receipt=_receipt(job),
    )  # fmt: skip
    return answer, {**notes, **_arrived(job)}


def _of_sum(job: Job, sent: Sent) -> Done:
    answer = Answer(
        sealed=sent.vector, label=sent.label, papers=sent.papers, received=len(job.opened), receipt=_receipt(job)
    )
    return answer, {**sent.notes, **_arrived(job)}


def _vote(
    job: Job, organs: Sequence[Parcel], vector: Parcel | None, began: Gathered, papers: RoundPapers
) -> Done:  # fmt: skip
    judged = _judge(job, organs, vector, began, papers)
    line = cast(job, judged, proposal_sha256=str(job.task.proposal_sha256))
    answer = Answer(papers=AnswerPapers(statement=line), received=len(job.opened), receipt=_receipt(job))
    return answer, {"vote": judged.reason, "judged": dict(judged.notes), **_arrived(job)}


def _judge(
    job: Job, organs: Sequence[Parcel], vector: Parcel | None, began: Gathered, papers: RoundPapers
) -> Judged:  # fmt: skip
    """What cannot be read is refused; that it could not is all that the others learn, why is in this site's log."""
    total = job.task.total
    try:
        if total is None:
            candidate = take_candidate(job, organs)
        else:
            candidate = read_blind(job, total, began, _there(vector), papers)
    except (OrganNotFinite, OrganAbsurd):
        return unjudged("not-finite", start=began.start)
    except (InputError, FitError, TrustError) as error:
        note(job.home.folder, f"run {job.task.run}, round {job.task.round}: the aggregate cannot be read: {error}")
        return unjudged("cannot-open" if total is None else "cannot-read-sum", start=began.start)
    return judge(job, candidate=candidate, start=began.start, body=began.body)


def _began(job: Job, organs: Sequence[Parcel], vector: Parcel | None, papers: RoundPapers) -> Gathered:
    """What the task goes on from, once the votes on it are counted again."""
    task = job.task
    if task.mode != "secure-sum" or not plan_of(job).blind:
        began = gather(job, organs)
        rounds = {task.span_of(ref.round): ref.round for ref in task.parcels if ref not in task.candidates}
        digests = {rounds[span]: read_organ(path).sha256 for span, path in began.organs.items()}
        check_votes(job, papers, kept={number: (digest, digest) for number, digest in digests.items()})
        return began
    if task.kind != "vote":
        _keep_blind(job, vector, papers)
    return _remembered(job, before=task.round if task.kind != "receive" else task.round + 1)


def _keep_blind(job: Job, vector: Parcel | None, papers: RoundPapers) -> None:
    """Take in the blind sum of the newest round that was kept, which this site has read before if it voted.

    The votes are counted again: on what counts in each span, and on every round since that was given up.
    """
    kept = {job.task.span_of(one.round): one for one in job.state.kept_sums(job.task.run)}
    newest = None if job.task.total is None else _newest_sum(job, job.task.total, vector, papers)
    if newest is not None:
        kept[job.task.span_of(newest.round)] = newest
    check_votes(job, papers, kept={one.round: (one.organ_sha256, one.proposal) for one in kept.values()})
    if newest is not None:
        job.state.keep_sum(newest)


def _newest_sum(job: Job, total: TotalRef, vector: Parcel | None, papers: RoundPapers) -> KeptSum:
    number = total.call.round
    known = job.state.kept_sum(job.task.run, number)
    if known is not None:
        return known
    organ = read_blind(job, total, _remembered(job, before=number, of=number), _there(vector), papers)
    return KeptSum(
        run=job.task.run, round=number, file=organ.name, organ_sha256=read_organ(organ).sha256,
        proposal=total.active_sha256,
    )  # fmt: skip


def _remembered(job: Job, *, before: int, of: int | None = None) -> Gathered:
    """The newest kept sums of each span before a round; blind sums come once, and are remembered.

    Args:
        of: for which round's span; the task's own when not given.
    """
    organs = {
        job.task.span_of(one.round): job.organs / one.file
        for one in job.state.kept_sums(job.task.run)
        if one.round < before
    }
    mine = job.task.span if of is None else job.task.span_of(of)
    others = tuple(organs[span] for span in sorted(organs) if span != mine)
    return Gathered(start=organs.get(mine), body=others, organs=organs)


def _there(vector: Parcel | None) -> Parcel:
    if vector is None:
        raise NoVector(where="task, field total", expected="the words that it names", got="none", hint="ask again")
    return vector


def _arrived(job: Job) -> Mapping[str, object]:
    return {"opened": job.opened, "left_out": job.left_out}


def _receipt(job: Job) -> bytes | None:
    """How far the privacy ledger has come, where this task may have moved it."""
    own, task = job.policy.privacy, job.task
    spends = (task.kind == "train" and task.privacy is not None) or (
        task.kind == "vote" and job.policy.vote is not None and job.policy.vote.allowed == "charged"
    )
    if own is None or not spends:
        return None
    return receipt_for(task, home=job.home, policy=own, now=datetime.now(UTC))
