"""A site's work on one task, as decisions: is it signed, may I, did I before, what came with it, train, seal, answer.

The order is the promise: signature, then policy, then the log, then the site's own memory, and only then any work. What
leaves is in `Answer` and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import not_fed
from not_fed.envelope.papers import NO_PAPERS, RoundPapers
from not_fed.envelope.receipt import verify_receipt
from not_fed.envelope.task import PROTOCOL, Greeting, Kind, Task, sign_greeting, verify_task
from not_fed.home import Home
from not_fed.keys import Signer
from not_fed.progress import Progress, silent
from not_fed.site.answer import Answer, from_stored, to_stored
from not_fed.site.approval import require_approval
from not_fed.site.hours import within
from not_fed.site.log_file import note
from not_fed.site.log_watch import seen_size, watch_log
from not_fed.site.not_now import OutsideHours, Rehearsing, at_work, room_by_type
from not_fed.site.parcels import Parcel, check_parcels
from not_fed.site.policy import SitePolicy, load_policy, permit
from not_fed.site.state import SiteState
from not_fed.site.sumkeys import next_key

WORDS: Final[Mapping[Kind, str]] = {
    "train": "training", "help": "helping to take the masks off", "reveal": "standing in for a lost helper",
    "vote": "judging the aggregate", "receive": "receiving the result",
}  # fmt: skip
REHEARSE = "NOT_FED_REHEARSE"  # set to 1 by `not-fed site join --rehearse`


def greet(nonce: str, *, home: Path, now: datetime) -> bytes:
    """Say who this site is, signed for its own coordinator and this nonce only."""
    policy, place = load_policy(home), Home(home)
    signer = place.signer()
    greeting = Greeting(
        v=1,
        federation=policy.federation,
        site=policy.name,
        coordinator=policy.coordinator,
        nonce=nonce,
        log_size=seen_size(home, federation=policy.federation, keeper=policy.coordinator),
        not_fed=not_fed.__version__,
        protocol=PROTOCOL,
        round_key=_round_key(place, policy, signer, now=now),
        issued=now,
    )
    return sign_greeting(greeting, signer=signer)


def _round_key(place: Home, policy: SitePolicy, signer: Signer, *, now: datetime) -> str | None:
    """A sealing key for the next secure sum, where this site takes part in any."""
    if "secure-sum" not in policy.modes:
        return None
    own = place.roster(now).member(policy.name, now=now)
    line = next_key(place, signer=signer, federation=policy.federation, recipient=own.recipient, now=now)
    return line.decode("ascii")


def answer_task(
    line: bytes,
    *,
    parcels: Sequence[Parcel],
    home: Path,
    now: datetime,
    papers: RoundPapers = NO_PAPERS,
    growth: bytes | None = None,
    receipt: bytes | None = None,
    progress: Progress = silent,
) -> Answer:
    """Do what a signed task asks, as far as this site's policy allows.

    Args:
        line: the task as it came. The same task again gets the same answer again, without work.
        parcels: the sealed organs that came with it, and the words of a blind sum.
        papers: what a secure sum or votes add.
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
                answer = _answer(task, hashlib.sha256(line).hexdigest(), parcels, papers, known)
            if task.kind == "receive":
                _clean_up(home)
            elif task.mode == "secure-sum":
                key = next_key(
                    place, signer=place.signer(), federation=policy.federation, now=now,
                    recipient=roster.member(policy.name, now=now).recipient,
                )  # fmt: skip
                answer = replace(answer, papers=replace(answer.papers, round_key=key))
    return answer


def _answer(
    task: Task, digest: str, parcels: Sequence[Parcel], papers: RoundPapers, known: Mapping[str, Any]
) -> Answer:
    policy, home, state, now = known["policy"], known["home"], known["state"], known["now"]
    organs = [parcel for parcel in parcels if task.total is None or parcel.sha256 != task.total.sha256]
    if is_rehearsing():  # first: nothing is sent, not even an answer that was given before
        check_parcels(task, organs, me=policy.name, state=state)
        raise _rehearsed(task, known)
    stored = state.answer_to(task, sha256=digest)
    if stored is not None:
        return from_stored(stored, home.folder)
    check_parcels(task, organs, me=policy.name, state=state)
    _require_hours(task, policy, now=now)
    require_approval(task, policy=policy, state=state, now=now)
    state.start(task, sha256=digest, now=now)
    note(home.folder, f"{_named(task)} begins")
    from not_fed.site.job import Job
    from not_fed.site.steps import do  # torch and the model are behind these; refusing needs none of them

    answer, notes = do(Job(task=task, **known), parcels, papers)
    state.finish(task, answer=to_stored(answer, home.folder), result=notes, now=datetime.now(UTC))
    note(home.folder, f"{_named(task)} is answered{_left_out(answer)}")
    return answer


def _named(task: Task) -> str:
    return f"run {task.run}, round {task.round} of {task.rounds}: {WORDS[task.kind]}"


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


def _clean_up(home: Path) -> None:
    """The run has ended: neither its cache nor its outgoing files stay."""
    for name in ("cache", "outbox", "inbox"):
        shutil.rmtree(home / name, ignore_errors=True)
