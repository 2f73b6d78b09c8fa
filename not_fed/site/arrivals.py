"""What came with a task, opened one by one: for each span that was trained, the aggregate of its newest round.

With several spans in turn they make a body: the one of the task's own span is what training starts from, the others lie
in their layers meanwhile. What was opened for an earlier task is not opened again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from not_fed.envelope.checks import Expectation
from not_fed.envelope.open import Opened, open_organ, passport_path
from not_fed.envelope.policy import ImportPolicy
from not_fed.envelope.seen import CheckOnly
from not_fed.envelope.task import ParcelRef
from not_fed.errors import NotFedError, PeerError, TrustError
from not_fed.organ.fit import check_fit
from not_fed.organ.merge import OrganMean, check_claims, is_mean_of
from not_fed.organ.organ import read_organ
from not_fed.site.job import Job
from not_fed.site.parcels import Parcel, ParcelAwaited
from not_fed.site.state import KeptOrgan


class OtherSender(TrustError):
    """A sealed organ comes from somebody other than the task says."""

    code = "parcel-other-sender"


class NothingUsable(PeerError):
    """None of the organs that came with the task can be used, and this site has none of its own."""

    code = "nothing-usable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What training goes on from.

    Attributes:
        start: the newest aggregate of the task's own span; None while that has not been trained.
        body: those of the other spans, from the lowest layer up.
        organs: all of them, by span.
    """

    start: Path | None
    body: tuple[Path, ...]
    organs: Mapping[tuple[int, int], Path]


def gather(job: Job, parcels: Sequence[Parcel]) -> Gathered:
    """Open what came, and average it (bank) or take the aggregate; nothing in the first round.

    An organ that cannot be used is left out and noted in `job.left_out`, so that one bad site does not stop the others.

    Raises:
        NothingUsable: nothing is left of a round to go on from. TrustError, FitError: beyond mode bank, an aggregate is
            refused. ParcelAwaited: an organ that was opened before is gone.
    Proved by: tests/journeys/test_rotating_spans.py::test_every_site_ends_with_the_same_body,
        tests/journeys/test_rotating_spans.py::test_what_was_opened_before_is_not_opened_again
    """
    by_digest = {parcel.sha256: parcel for parcel in parcels}
    refs = [ref for ref in job.task.parcels if not _is_candidate(job, ref)]
    organs = {}
    for number in sorted({ref.round for ref in refs}):
        usable = []
        for ref in refs:  # in the task's order, so that every site adds in the same order
            organ = _bring(job, ref, by_digest) if ref.round == number else None
            if organ is not None:
                usable.append((organ, ref))
        taken = usable[0][0] if job.task.mode != "bank" else _mean(job, number, usable)
        organs[job.task.span_of(number)] = taken
    others = tuple(organs[span] for span in sorted(organs) if span != job.task.span)
    return Gathered(start=organs.get(job.task.span), body=others, organs=organs)


def take_candidate(job: Job, parcels: Sequence[Parcel]) -> Path:
    """Open what a vote is about: the round's own aggregate.

    Raises:
        what opening it raises: it is not what the task says, or not one that this site can use.
    """
    by_digest = {parcel.sha256: parcel for parcel in parcels}
    taken = [_bring(job, ref, by_digest) for ref in job.task.parcels if _is_candidate(job, ref)]
    if len(taken) != 1 or taken[0] is None:
        raise NothingUsable(
            where="task, field parcels", expected="one aggregate to vote on", got=f"{len(taken)}",
            hint="nothing was said about any organ",
        )  # fmt: skip
    return taken[0]


def _is_candidate(job: Job, ref: ParcelRef) -> bool:
    return ref in job.task.candidates


def _bring(job: Job, ref: ParcelRef, parcels: Mapping[str, Parcel]) -> Path | None:
    found = _find(job, ref)
    if found is not None:
        return found
    if ref.sealed_sha256 not in parcels:
        raise ParcelAwaited(
            where=f"round {ref.round}", expected=f"the organ of {ref.sender}, opened for an earlier task", got="none",
            hint="nothing was done; the coordinator sends it again",
        )  # fmt: skip
    return _take(job, ref, parcels[ref.sealed_sha256])


def _mean(job: Job, round_number: int, usable: Sequence[tuple[Path, ParcelRef]]) -> Path:
    """The mean of those that can be added; the others are left out, as those that cannot be opened."""
    out = job.organs / f"aggregate-{round_number}.organ"
    if out.is_file() and is_mean_of(read_organ(out), [(read_organ(organ).sha256, ref.weight) for organ, ref in usable]):
        return out  # made for an earlier task; it is whole, since it appeared whole
    out.unlink(missing_ok=True)
    mean, added = OrganMean(scratch=job.organs), 0
    for organ, ref in usable:
        try:
            mean.add(organ, weight=ref.weight)
            added += 1
        except NotFedError as error:
            job.left_out.append(f"{ref.sealed_sha256} {error.code}")
    if not added:
        raise NothingUsable(
            where="task, field parcels",
            expected="at least one organ that can be used",
            got="none",
            hint="the log of this site says why each was left out",
        )
    mean.write(out)
    return out


def _find(job: Job, ref: ParcelRef) -> Path | None:
    """The organ when it is this site's own, or was opened for an earlier task, or by an attempt at this one."""
    kept = job.state.kept(ref.sealed_sha256)
    if kept is None or (kept.run, kept.round, kept.sender) != (job.task.run, ref.round, ref.sender):
        return None
    path = job.organs / kept.file
    return path if path.is_file() else None


def _take(job: Job, ref: ParcelRef, parcel: Parcel) -> Path | None:
    """Bring one sealed organ here and open it; one that cannot be fetched ends this attempt, and is not left out."""
    with parcel.on_disk(job.home.private_folder("inbox")) as sealed:
        return _try_open(job, ref, parcel, sealed)


def _try_open(job: Job, ref: ParcelRef, parcel: Parcel, sealed: Path) -> Path | None:
    try:
        return _open(job, ref, parcel, sealed)
    except NotFedError as error:
        if job.task.mode != "bank":
            raise
        job.left_out.append(f"{ref.sealed_sha256} {error.code}")
        return None


def _open(job: Job, ref: ParcelRef, parcel: Parcel, sealed: Path) -> Path:
    started, round_number = time.monotonic(), ref.round
    name = f"aggregate-{round_number}" if job.task.mode != "bank" else f"from-{ref.sender}-{round_number}"
    out = job.organs / f"{name}.organ"
    _remove(out)  # left by an attempt that was cut off
    try:
        opened = _open_file(job, ref, parcel, sealed, out=out)
        if opened.sender != ref.sender:
            raise OtherSender(
                where="sealed organ",
                expected=f"one from {ref.sender}",
                got=f"one from {opened.sender}",
                hint="it was left out",
            )
        arrived = read_organ(out)
        check_claims(arrived, opened.passport)
        check_fit(arrived, base=job.base)
    except BaseException:
        _remove(out)
        raise
    organ = KeptOrgan(
        sealed_sha256=ref.sealed_sha256,
        run=job.task.run,
        round=ref.round,
        sender=ref.sender,
        file=out.name,
        organ_sha256=opened.organ_sha256,
        seconds=time.monotonic() - started,
    )
    job.state.keep(organ, waybill=(opened.waybill_key, opened.expires))
    job.opened.append({"sender": ref.sender, "sealed_sha256": ref.sealed_sha256, "seconds": organ.seconds})
    return out


def _remove(organ: Path) -> None:
    for path in (organ, passport_path(organ)):
        path.unlink(missing_ok=True)


def _open_file(job: Job, ref: ParcelRef, parcel: Parcel, sealed: Path, *, out: Path) -> Opened:
    expect = Expectation(
        federation=job.task.federation,
        round_number=ref.round,
        base_sha256=job.task.base_sha256,
        span=job.task.span_of(ref.round),
        demands=ImportPolicy(log_proof="required") if job.log_is_kept else None,
    )
    return open_organ(
        sealed,
        opener=job.opener,
        roster=job.roster,
        out=out,
        now=job.now,
        expect=expect,
        label=parcel.label,
        proof=parcel.proof,
        seen=CheckOnly(job.state),
    )
