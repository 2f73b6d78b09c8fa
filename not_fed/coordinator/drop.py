"""A coordinator without a network: orders go out in a folder or on a stick, and answers come in the same way.

It drives the same `Rounds` as the network does, one process at a time, so that a run may change from one to the other.
There is no deadline: a step is over when every site has answered, or when a person closes it with those present.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from not_fed import files
from not_fed.coordinator.kept_log import log_folder
from not_fed.coordinator.rounds import Order, Reply, Rounds
from not_fed.coordinator.state import Step, run_lock
from not_fed.envelope.carried import MAX_CARRIED_BYTES, CarriedAnswer, require_by_file, verify_carried
from not_fed.errors import NotFedError, TrustError
from not_fed.home import Home
from not_fed.transfer import stick


class AnswerOutdated(TrustError):
    """This answer belongs to another step than the one that is open; it was not counted."""

    code = "answer-outdated"


class AnswerTooLarge(TrustError):
    """The site announces a sealed organ that is larger than the plan takes; it was not read."""

    code = "answer-too-large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: for each awaited site the bytes of its folder. `step` is None when the run is complete."""

    run: str
    step: Step | None
    orders: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of a stick.

    Attributes:
        step: the step that was open; None when the run was complete before.
        counted: site -> status (`sealed`, `received`, `refused`, `bad-answer`), and `again` for one that was known.
        errors: site -> why nothing of its folder was used.
        awaited: sites that have not given a good answer yet.
        closed: whether the step is over; complete: whether the run is.
    """

    run: str
    step: Step | None
    counted: dict[str, str] = field(default_factory=dict)
    errors: dict[str, NotFedError] = field(default_factory=dict)
    awaited: tuple[str, ...] = ()
    closed: bool = False
    complete: bool = False


def export_orders(home: Path, folder: Path, *, now: datetime) -> Exported:
    """Write the open step's order for each awaited site, the roster and the log into `folder`.

    The same folder may be written again, from the same or a later step: what is there of this run is replaced.

    Raises:
        RunLocked: a server app, or another command, is driving this run. NotAFile, NoSpace: the folder.
    Guarantees: nothing but what those sites may have leaves: sealed organs whose labels name them, and what is signed.
    Proved by: tests/journeys/test_file_drop.py::test_a_federation_without_a_network_reaches_the_same_aggregate
    """
    with _rounds(home, now=now) as rounds:
        step = rounds.next_step()
        if step is None:
            return Exported(run=rounds.plan.run, step=None)
        rounds.open(step)
        orders = {}
        for site in rounds.waiting_for(step):
            order = rounds.order(step, site, now=now, bodies=False)
            orders[site] = _write_order(order, rounds, folder)
        _write_common(home, folder, rounds)
        return Exported(run=rounds.plan.run, step=step, orders=orders)


def import_answers(home: Path, folder: Path, *, close: bool = False, now: datetime) -> Imported:
    """Count the answers in `folder`, and close the step when every site has given a good one.

    A folder that cannot be used stops no other: why is in the result.

    Args:
        close: end the step with the answers that are there.
    Raises:
        RunLocked; TooFewAnswers: to close the step needs more. What was counted stays counted.
    Guarantees: an answer counts when the site has signed it for this very step, over exactly these sealed bytes, and
        then as strictly as one from the network; once, however often it is imported.
    Proved by: tests/journeys/test_file_drop.py::test_a_stick_that_comes_twice_counts_once,
        tests/attacks/test_file_drop.py
    """
    with _rounds(home, now=now) as rounds:
        step = rounds.next_step()
        if step is None:
            return Imported(run=rounds.plan.run, step=None, complete=True)
        counted: dict[str, str] = {}
        errors: dict[str, NotFedError] = {}
        for site in rounds.plan.sites:
            if not stick.is_there(folder, stick.ANSWERS, site):
                continue
            try:
                counted[site] = _take(home, rounds, step, site, folder, now=now)
            except NotFedError as error:
                errors[site] = error
        awaited = tuple(rounds.waiting_for(step))
        closed = close or not awaited
        if closed:
            rounds.close(step, now=now)
        return Imported(
            run=rounds.plan.run,
            step=step,
            counted=counted,
            errors=errors,
            awaited=awaited,
            closed=closed,
            complete=closed and rounds.next_step() is None,
        )


@contextmanager
def _rounds(home: Path, *, now: datetime) -> Iterator[Rounds]:
    with run_lock(home):
        rounds = Rounds(home, now=now)
        require_by_file(rounds.plan.mode, quorum=rounds.quorum)
        with rounds.state.session():
            yield rounds


def _write_order(order: Order, rounds: Rounds, folder: Path) -> int:
    size = len(order.task)
    with stick.written(folder, stick.ORDERS, order.site) as part:
        files.write_atomic(part / stick.TASK, order.task)
        if order.receipt is not None:
            files.write_atomic(part / stick.RECEIPT, order.receipt)
        for parcel in order.parcels:
            sealed = part / f"{parcel.sealed_sha256}.sealed"
            rounds.bank.fetch(parcel.sealed_sha256, sealed)
            files.write_atomic(sealed.with_suffix(".label"), parcel.label)
            if parcel.proof is not None:
                files.write_atomic(sealed.with_suffix(".proof"), parcel.proof)
            size += sealed.stat().st_size
    return size


def _write_common(home: Path, folder: Path, rounds: Rounds) -> None:
    """What every site may have: the roster, so that a change needs no way of its own, and the log as it is now."""
    with stick.written(folder, stick.ROSTER) as part:
        stick.copy_tree(home / "roster" / "repository", part)
    if rounds.log is not None:
        with stick.written(folder, stick.LOG) as part:
            stick.copy_tree(log_folder(home), part)


def _take(home: Path, rounds: Rounds, step: Step, site: str, folder: Path, *, now: datetime) -> str:
    plan = rounds.plan
    with stick.opened(folder, stick.ANSWERS, site) as carried:
        line = carried.read(stick.ANSWER, max_bytes=MAX_CARRIED_BYTES)
        answer = verify_carried(line, site=site, coordinator=plan.name, roster=rounds.roster, now=now)
        _check_step(answer, step)
        if _known(rounds, step, answer):
            return "again"
        if answer.sealed_sha256 is not None:
            _to_bank(home, rounds, answer, carried, now=now)
    rounds.state.saw_site(site, at=answer.issued, version=answer.not_fed)
    return rounds.accept(step, site, _reply(answer), seconds=0.0, now=now)


def _check_step(answer: CarriedAnswer, step: Step) -> None:
    if (answer.run, answer.round, answer.kind) != (step.run, step.round, step.kind):
        raise AnswerOutdated(
            where=f"answer of {answer.site}",
            expected=f"one for run {step.run}, round {step.round}, {step.kind}",
            got=f"one for run {answer.run}, round {answer.round}, {answer.kind}",
            hint="nothing was counted; carry the newest export there, and its answer back",
        )


def _known(rounds: Rounds, step: Step, answer: CarriedAnswer) -> bool:
    """Whether this site has given a good answer in this step; the first one stands."""
    return answer.site not in rounds.waiting_for(step)


def _to_bank(home: Path, rounds: Rounds, answer: CarriedAnswer, carried: stick.Carried, *, now: datetime) -> None:
    """The sealed organ, copied off the stick and checked before anything is kept of it."""
    if answer.sealed_sha256 is None or answer.size_bytes is None or answer.label is None:
        return
    if answer.size_bytes > rounds.plan.max_parcel_bytes:
        raise AnswerTooLarge(
            where=f"answer of {answer.site}", expected=f"at most {rounds.plan.max_parcel_bytes:,} bytes",
            got=f"{answer.size_bytes:,}", hint="nothing was read; ask the site",
        )  # fmt: skip
    path = Home(home).private_folder("inbox") / f"{answer.sealed_sha256}.sealed"
    try:
        carried.copy(stick.ORGAN, out=path, sha256=answer.sealed_sha256, size_bytes=answer.size_bytes)
        rounds.bank.put(path, label=answer.label.encode("ascii"), roster=rounds.roster, now=now)
    finally:
        path.unlink(missing_ok=True)


def _reply(answer: CarriedAnswer) -> Reply:
    return Reply(
        banked=answer.sealed_sha256,
        label=None if answer.label is None else answer.label.encode("ascii"),
        received=None if answer.refused is not None else answer.received,
        refused=answer.refused,
        left_out=answer.left_out,
        receipt=None if answer.receipt is None else answer.receipt.encode("ascii"),
    )
