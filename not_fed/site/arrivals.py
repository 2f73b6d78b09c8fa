"""What came with a task, opened one by one, averaged in the task's order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from not_fed.envelope.checks import Expectation
from not_fed.envelope.open import Opened, open_organ, passport_path
from not_fed.envelope.policy import ImportPolicy
from not_fed.envelope.seen import CheckOnly
from not_fed.envelope.task import ParcelRef
from not_fed.errors import NotFedError, PeerError, TrustError
from not_fed.organ.fit import check_fit
from not_fed.organ.merge import OrganMean, check_claims
from not_fed.organ.organ import read_organ
from not_fed.site.job import Job
from not_fed.site.parcels import Parcel
from not_fed.site.state import KeptOrgan


class OtherSender(TrustError):
    """A sealed organ comes from somebody other than the task says."""

    code = "parcel-other-sender"


class NothingUsable(PeerError):
    """None of the organs that came with the task can be used, and this site has none of its own."""

    code = "nothing-usable"


def gather(job: Job, parcels: Sequence[Parcel]) -> Path | None:
    """Open what came and average it (bank), or take the aggregate (trusted); None in the first round.

    An organ that cannot be used is left out and noted in `job.left_out`, so that one bad site does not stop the others.

    Raises:
        NothingUsable: nothing is left to go on from. TrustError, FitError: in mode trusted, the aggregate is refused.
    """
    if not job.task.parcels:
        return None
    by_digest = {parcel.sha256: parcel for parcel in parcels}
    usable = []
    for ref in job.task.parcels:  # in the task's order, so that every site adds in the same order
        organ = _find(job, ref) or _take(job, ref, by_digest[ref.sealed_sha256])
        if organ is not None:
            usable.append((organ, ref))
    if usable and job.task.mode == "trusted":
        return usable[0][0]
    return _mean(job, usable)


def _mean(job: Job, usable: Sequence[tuple[Path, ParcelRef]]) -> Path:
    """The mean of those that can be added; the others are left out, as those that cannot be opened."""
    out = job.organs / f"aggregate-{max(ref.round for ref in job.task.parcels)}.organ"
    out.unlink(missing_ok=True)  # left by an attempt that was cut off
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
    """The organ when it is this site's own, or was opened by an attempt at this very task that was cut off later."""
    kept = job.state.kept(ref.sealed_sha256)
    same = kept is not None and (kept.run, kept.round, kept.sender) == (
        job.task.run,
        ref.round,
        ref.sender,
    )
    return job.organs / kept.file if kept is not None and same else None


def _take(job: Job, ref: ParcelRef, parcel: Parcel) -> Path | None:
    """Bring one sealed organ here and open it; one that cannot be fetched ends this attempt, and is not left out."""
    with parcel.on_disk(job.home.private_folder("inbox")) as sealed:
        return _try_open(job, ref, parcel, sealed)


def _try_open(job: Job, ref: ParcelRef, parcel: Parcel, sealed: Path) -> Path | None:
    try:
        return _open(job, ref, parcel, sealed)
    except NotFedError as error:
        if job.task.mode == "trusted":
            raise
        job.left_out.append(f"{ref.sealed_sha256} {error.code}")
        return None


def _open(job: Job, ref: ParcelRef, parcel: Parcel, sealed: Path) -> Path:
    started, round_number = time.monotonic(), ref.round
    name = f"aggregate-{round_number}" if job.task.mode == "trusted" else f"from-{ref.sender}-{round_number}"
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
        round=round_number,
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
