"""A site's work on one task, as decisions: is it signed, may I, did I before, what came with it, train, seal, answer.

The order is the promise: signature, then policy, then the log, then the site's own memory, and only then any work. What
leaves is in `Answer` and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import not_fed
from not_fed.envelope.receipt import verify_receipt
from not_fed.envelope.task import PROTOCOL, Greeting, Task, sign_greeting, verify_task
from not_fed.errors import InputError
from not_fed.home import Home
from not_fed.progress import Progress, silent
from not_fed.site.approval import require_approval
from not_fed.site.hours import within
from not_fed.site.log_file import note
from not_fed.site.log_watch import seen_size, watch_log
from not_fed.site.not_now import OutsideHours, Rehearsing, at_work, room_by_type
from not_fed.site.parcels import Parcel, check_parcels
from not_fed.site.policy import SitePolicy, load_policy, permit
from not_fed.site.state import SiteState

REHEARSE = "NOT_FED_REHEARSE"  # set to 1 by `not-fed site join --rehearse`


class AnswerGone(InputError):
    """The stored answer to this task is gone: its run has ended here."""

    code = "answer-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that leaves the site.

    Attributes:
        sealed, label: this round's organ as ciphertext, and its label; None when only receiving.
        received: how many organs of others were taken in.
        left_out: digest and error code of each that could not be.
        receipt: how far the ledger had come after a private task, signed; the coordinator keeps it for this site.
    """

    sealed: Path | None
    label: bytes | None
    received: int
    left_out: tuple[str, ...]
    receipt: bytes | None = None


def greet(nonce: str, *, home: Path, now: datetime) -> bytes:
    """Say who this site is, signed for its own coordinator and this nonce only."""
    policy = load_policy(home)
    greeting = Greeting(
        v=1,
        federation=policy.federation,
        site=policy.name,
        coordinator=policy.coordinator,
        nonce=nonce,
        log_size=seen_size(home, federation=policy.federation, keeper=policy.coordinator),
        not_fed=not_fed.__version__,
        protocol=PROTOCOL,
        issued=now,
    )
    return sign_greeting(greeting, signer=Home(home).signer())


def answer_task(
    line: bytes,
    *,
    parcels: Sequence[Parcel],
    home: Path,
    now: datetime,
    growth: bytes | None = None,
    receipt: bytes | None = None,
    progress: Progress = silent,
) -> Answer:
    """Do what a signed task asks, as far as this site's policy allows.

    Args:
        line: the task as it came. The same task again gets the same answer again, without work.
        parcels: the sealed organs that came with it.
        growth: the coordinator's newest checkpoint, and the proof that its log grew from what this site has seen.
        receipt: this site's own, from an earlier private task, as the coordinator kept it.
    Raises:
        SiteBusy, OutsideHours, ApprovalAwaited, Rehearsing, DiskFull: not now; the coordinator may ask again.
        NotFedError: refused or failed; only its code may leave the site.
    Guarantees: each round of a run is answered with one organ. A process that was killed is followed by one that goes
        on from its resume point, or sends the organ that was whole; a run is reserved in the ledger once.
    Proved by: tests/journeys/test_federation_bank.py::test_a_refused_task_does_no_work,
        tests/journeys/test_site_killed.py::test_a_site_killed_in_training_goes_on_and_is_charged_once
    """
    with room_by_type(home):
        policy, place = load_policy(home), Home(home)
        roster = place.roster(now)
        task = verify_task(line, roster=roster, now=now)
        permit(task, policy=policy)
        with at_work(home):
            watch_log(growth, parcels=parcels, task=task, home=home, roster=roster, now=now)
            kept = None
            if receipt is not None:
                kept = verify_receipt(receipt, site=policy.name, coordinator=task.coordinator, roster=roster, now=now)
            state = SiteState(home)
            with state.session():
                known = {
                    "policy": policy, "home": place, "roster": roster, "state": state, "now": now, "receipt": kept,
                    "progress": progress,
                }  # fmt: skip
                answer = _answer(task, hashlib.sha256(line).hexdigest(), parcels, known)
            if task.kind == "receive":
                _clean_up(home)
    return answer


def _answer(task: Task, digest: str, parcels: Sequence[Parcel], known: Mapping[str, Any]) -> Answer:
    policy, home, state, now = known["policy"], known["home"], known["state"], known["now"]
    if is_rehearsing():  # first: nothing is sent, not even an answer that was given before
        check_parcels(task, parcels, me=policy.name, state=state)
        raise _rehearsed(task, known)
    stored = state.answer_to(task, sha256=digest)
    if stored is not None:
        return _from_stored(stored, home.folder)
    check_parcels(task, parcels, me=policy.name, state=state)
    _require_hours(task, policy, now=now)
    require_approval(task, policy=policy, state=state, now=now)
    state.start(task, sha256=digest, now=now)
    note(home.folder, f"{_named(task)} begins")
    answer, notes = _do(task, parcels, known)
    state.finish(task, answer=_to_stored(answer, home.folder), result=notes, now=datetime.now(UTC))
    note(home.folder, f"{_named(task)} is answered{_left_out(answer)}")
    return answer


def _named(task: Task) -> str:
    what = "training" if task.kind == "train" else "receiving the result"
    return f"run {task.run}, round {task.round} of {task.rounds}: {what}"


def _left_out(answer: Answer) -> str:
    """What of others could not be used, and why: their administrators would want to know too."""
    return f"; left out: {', '.join(answer.left_out)}" if answer.left_out else ""


def is_rehearsing() -> bool:
    """Whether this process was started by `not-fed site join --rehearse`."""
    return os.environ.get(REHEARSE) == "1"


def _require_hours(task: Task, policy: SitePolicy, *, now: datetime) -> None:
    """Training keeps to the site's hours; taking in a result does not need them."""
    if task.kind == "train" and not within(policy.hours, now):
        raise OutsideHours(
            where="site.toml, field hours", expected=f"one of {', '.join(policy.hours)}",
            got=f"{now.astimezone():%H:%M}", hint="the coordinator asks again until its round is over",
        )  # fmt: skip


def _rehearsed(task: Task, known: Mapping[str, Any]) -> Rehearsing:
    """What the task would have come to, as far as that can be known without training."""
    from not_fed.site.job import Job
    from not_fed.site.making import rehearse

    found = rehearse(Job(task=task, **known))
    return Rehearsing(
        where=f"run {task.run}, round {task.round}", expected="a join without --rehearse", got=f"a rehearsal: {found}",
        hint="this task would have been done",
    )  # fmt: skip


def _do(task: Task, parcels: Sequence[Parcel], known: Mapping[str, Any]) -> tuple[Answer, dict[str, Any]]:
    # torch and the model are behind these; refusing needs none of them
    from not_fed.site.account import receipt_for
    from not_fed.site.arrivals import gather
    from not_fed.site.job import Job
    from not_fed.site.making import make_organ

    job = Job(task=task, **known)
    start, sealed = gather(job, parcels), None
    notes: dict[str, Any] = {"aggregate": start.name if start else None}
    if task.kind == "train":
        sealed, made = make_organ(job, start=start)
        notes |= made
    notes |= {"opened": job.opened, "left_out": job.left_out}
    own = job.policy.privacy if task.kind == "train" and task.privacy is not None else None
    return Answer(
        sealed=sealed.path if sealed else None,
        label=sealed.label if sealed else None,
        received=len(job.opened),
        left_out=tuple(job.left_out),
        receipt=None if own is None else receipt_for(task, home=job.home, policy=own, now=datetime.now(UTC)),
    ), notes


def _to_stored(answer: Answer, home: Path) -> dict[str, Any]:
    sealed = None if answer.sealed is None else str(answer.sealed.relative_to(home))
    label = None if answer.label is None else answer.label.decode("ascii")
    receipt = None if answer.receipt is None else answer.receipt.decode("ascii")
    return {
        "sealed": sealed, "label": label, "received": answer.received, "left_out": list(answer.left_out),
        "receipt": receipt,
    }  # fmt: skip


def _from_stored(stored: Mapping[str, Any], home: Path) -> Answer:
    sealed = None if stored["sealed"] is None else home / str(stored["sealed"])
    if sealed is not None and not sealed.is_file():
        raise AnswerGone(
            where="task, field id",
            expected="a task of a run that goes on",
            got="one whose answer was deleted at the run's end",
            hint="start a new run",
        )
    label = None if stored["label"] is None else str(stored["label"]).encode("ascii")
    receipt = None if stored["receipt"] is None else str(stored["receipt"]).encode("ascii")
    return Answer(
        sealed=sealed, label=label, received=stored["received"], left_out=tuple(stored["left_out"]), receipt=receipt
    )


def _clean_up(home: Path) -> None:
    """The run has ended: neither its cache nor its outgoing files stay."""
    for name in ("cache", "outbox", "inbox"):
        shutil.rmtree(home / name, ignore_errors=True)
