"""A site without a network: orders come in a folder or on a stick, and its answer goes out the same way.

The checks are those of the network, in the same order, and the same memory is behind them: a task that came both ways
is answered once. What is on the stick is believed as far as its signatures reach, and no further.

    HOME/drop/answer.json   the newest answer: the line that is carried, and where its sealed organ lies
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import not_fed
from not_fed import canonical, files
from not_fed.envelope.carried import CARRIED_TYPE, MAX_CARRIED_BYTES, CarriedAnswer, require_by_file, sign_carried
from not_fed.envelope.dsse import parse_statement
from not_fed.envelope.label import MAX_LABEL_BYTES, parse_label
from not_fed.envelope.receipt import MAX_RECEIPT_BYTES
from not_fed.envelope.task import MAX_TASK_BYTES, ORDER_OF_KINDS, Kind, ParcelRef, Task, verify_task
from not_fed.envelope.waiting import COME_BACK
from not_fed.errors import InputError, NotFedError, TrustError
from not_fed.home import Home
from not_fed.progress import Progress, silent
from not_fed.site.answer import Answer
from not_fed.site.log_watch import seen_size
from not_fed.site.parcels import Parcel
from not_fed.site.policy import load_policy, permit
from not_fed.site.work import answer_task
from not_fed.transfer import stick
from not_fed.trust.log_folder import LogFolder
from not_fed.trust.roster import TrustedRoster, update_roster

FOLDER, KEPT = "drop", "answer.json"
MAX_PROOF_BYTES = 64 << 10


class OrderOutdated(TrustError):
    """This site has answered a later order than the one on this stick."""

    code = "order-outdated"


class NothingToCarry(InputError):
    """There is no answer of this site that could be carried."""

    code = "nothing-to-carry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an import came to.

    Attributes:
        refused: the code that is carried to the coordinator instead of an organ.
        size_bytes: of the sealed organ that is to be carried; 0 where there is none.
    """

    run: str
    round: int
    kind: Kind
    received: int
    left_out: tuple[str, ...]
    refused: str | None
    size_bytes: int


def import_order(home: Path, folder: Path, *, now: datetime, progress: Progress = silent) -> Done:
    """Do what the order for this site in `folder` asks, as far as its policy allows, and keep the answer for `export`.

    Raises:
        StickEmpty, StickIncomplete, StickAltered, NotAFile: the folder; nothing was changed, and nothing is answered.
        OrderOutdated: an older stick. TrustError: the task is not the coordinator's, or not for now.
        NotFedError: refused. The code is kept, to be carried to the coordinator, unless it is one to come back with,
        such as approval-awaited: then the same stick is imported again later.
    Guarantees: a task that was answered before, over whatever way, is answered again from the store, without work.
    Proved by: tests/journeys/test_file_drop.py::test_a_doubled_stick_is_answered_from_the_store,
        tests/attacks/test_file_drop.py
    """
    policy, place = load_policy(home), Home(home)
    if stick.is_there(folder, stick.ROSTER):
        with stick.opened(folder, stick.ROSTER) as carried:
            update_roster(home / "roster", source=carried.path, now=now)
    roster = place.roster(now)
    with stick.opened(folder, stick.ORDERS, policy.name) as order:
        line = order.read(stick.TASK, max_bytes=MAX_TASK_BYTES)
        task = verify_task(line, roster=roster, now=now)
        require_by_file(task.mode, quorum=task.quorum)
        _refuse_outdated(home, task)
        receipt = order.read_if_there(stick.RECEIPT, max_bytes=MAX_RECEIPT_BYTES)
        try:
            permit(task, policy=policy)  # before a gigabyte is copied; `answer_task` asks again
            with _parcels(order, task, place, me=policy.name) as parcels:
                answer = answer_task(
                    line,
                    parcels=parcels,
                    home=home,
                    now=now,
                    growth=_growth(home, folder, task, roster, now=now),
                    receipt=receipt,
                    progress=progress,
                )
        except (stick.StickIncomplete, stick.StickAltered, files.NotAFile, files.NoSpace):
            raise
        except NotFedError as error:
            if error.code not in COME_BACK:
                _keep(place, task, None, refused=error.code, now=now)
            raise
    return _done(_keep(place, task, answer, refused=None, now=now))


def export_answer(home: Path, folder: Path) -> Done:
    """Write this site's newest answer into `folder`, where it takes the place of an older one of its own.

    Raises:
        NothingToCarry: no order was imported, or its run has ended here. NotAFile, NoSpace.
    Proved by: tests/journeys/test_file_drop.py::test_a_lost_stick_is_written_again
    """
    kept = _kept(home)
    if kept is None:
        raise NothingToCarry(
            where=str(home / FOLDER), expected="an answer to an order that was imported", got="none",
            hint="not-fed site import HOME DIR",
        )  # fmt: skip
    line, answer, sealed = kept
    with stick.written(folder, stick.ANSWERS, answer.site) as part:
        files.write_atomic(part / stick.ANSWER, line)
        if answer.sealed_sha256 is not None and answer.size_bytes is not None:
            try:
                source = files.open_regular(home / str(sealed))
            except files.NotAFile:
                raise NothingToCarry(
                    where=f"round {answer.round}", expected="a sealed organ of a run that goes on",
                    got="one that was deleted at the run's end", hint="import the newest order",
                ) from None  # fmt: skip
            with source:
                stick.copy_checked(
                    source, out=part / stick.ORGAN, sha256=answer.sealed_sha256, size_bytes=answer.size_bytes,
                    where=home / str(sealed),
                )  # fmt: skip
    return _done(answer)


@contextmanager
def _parcels(order: stick.Carried, task: Task, place: Home, *, me: str) -> Iterator[list[Parcel]]:
    """The sealed organs of others, whole and checked before any work: from here on the stick may be pulled out."""
    inbox = place.private_folder("inbox")
    refs = [ref for ref in task.parcels if ref.sender != me]
    try:
        yield [_take(order, ref, inbox=inbox) for ref in refs]
    finally:
        for ref in refs:
            _inside(inbox, ref).unlink(missing_ok=True)


def _take(order: stick.Carried, ref: ParcelRef, *, inbox: Path) -> Parcel:
    name = ref.sealed_sha256
    label = order.read(f"{name}.label", max_bytes=MAX_LABEL_BYTES)
    proof = order.read_if_there(f"{name}.proof", max_bytes=MAX_PROOF_BYTES)
    path = _inside(inbox, ref)
    order.copy(f"{name}.sealed", out=path, sha256=name, size_bytes=ref.size_bytes)
    return Parcel.at(path, label=label, proof=proof)


def _inside(inbox: Path, ref: ParcelRef) -> Path:
    return inbox / f"{ref.sealed_sha256}.sealed"


def _growth(home: Path, folder: Path, task: Task, roster: TrustedRoster, *, now: datetime) -> bytes | None:
    """How the log on the stick grew from what this site has seen; None where none is kept or none came along."""
    if roster.member(task.coordinator, now=now).log is None or not stick.is_there(folder, stick.LOG):
        return None
    with stick.opened(folder, stick.LOG) as carried:
        log = LogFolder(carried.path)
        seen = seen_size(home, federation=task.federation, keeper=task.coordinator)
        return log.consistency_text(min(seen, log.checkpoint.size))


def _refuse_outdated(home: Path, task: Task) -> None:
    kept = _kept(home)
    if kept is None or kept[1].task == task.id:
        return
    known = kept[1]
    if known.run == task.run and (task.round, ORDER_OF_KINDS.index(task.kind)) < (
        known.round,
        ORDER_OF_KINDS.index(known.kind),
    ):
        raise OrderOutdated(
            where=f"order of run {task.run}, round {task.round}", expected=f"round {known.round}, or a later one",
            got="one that was answered before", hint="nothing was done; ask the coordinator for its newest export",
        )  # fmt: skip


def _keep(place: Home, task: Task, answer: Answer | None, *, refused: str | None, now: datetime) -> CarriedAnswer:
    """Write the answer down, to be carried as often as it takes; a refusal never replaces an answer of its step."""
    kept = _kept(place.folder)
    if refused is not None and kept is not None and _step(kept[1]) == _step(task) and kept[1].refused is None:
        return kept[1]
    carried = _carried(task, answer, place, refused=refused, now=now)
    sealed = None if answer is None or answer.sealed is None else str(answer.sealed.relative_to(place.folder))
    value = {"line": sign_carried(carried, signer=place.signer()).decode("ascii"), "sealed": sealed}
    files.write_atomic(place.private_folder(FOLDER) / KEPT, canonical.dumps(value), overwrite=True)
    return carried


def _carried(task: Task, answer: Answer | None, place: Home, *, refused: str | None, now: datetime) -> CarriedAnswer:
    label = None if answer is None or answer.label is None else answer.label
    sealed = None if label is None else parse_label(label)[1].sealed
    return CarriedAnswer(
        v=1,
        federation=task.federation,
        coordinator=task.coordinator,
        site=load_policy(place.folder).name,
        task=task.id,
        run=task.run,
        round=task.round,
        kind=task.kind,
        label=None if label is None else label.decode("ascii"),
        sealed_sha256=None if sealed is None else sealed.sha256,
        size_bytes=None if sealed is None else sealed.size_bytes,
        received=0 if answer is None else answer.received,
        refused=refused,
        left_out=() if answer is None else answer.left_out,
        receipt=None if answer is None or answer.receipt is None else answer.receipt.decode("ascii"),
        not_fed=not_fed.__version__,
        issued=now,
    )


def _kept(home: Path) -> tuple[bytes, CarriedAnswer, str | None] | None:
    """The line that is carried, what it says, and where its sealed organ lies, from this site's own disk."""
    path = home / FOLDER / KEPT
    if not path.is_file():
        return None
    value = canonical.loads(files.read_regular(path, max_bytes=2 * MAX_CARRIED_BYTES), where=str(path))
    line = str(value["line"]).encode("ascii")
    _, carried = parse_statement(
        line, CarriedAnswer, payload_type=CARRIED_TYPE, where=str(path), max_bytes=MAX_CARRIED_BYTES
    )
    return line, carried, value["sealed"]


def _step(one: Task | CarriedAnswer) -> tuple[str, int, str]:
    return one.run, one.round, one.kind


def _done(carried: CarriedAnswer) -> Done:
    return Done(
        run=carried.run,
        round=carried.round,
        kind=carried.kind,
        received=carried.received,
        left_out=carried.left_out,
        refused=carried.refused,
        size_bytes=carried.size_bytes or 0,
    )
