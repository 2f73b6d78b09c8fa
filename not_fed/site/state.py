"""What a site remembers between messages and across crashes: one SQLite file in its home, written ahead, durable.

It answers four questions: was this waybill seen, was this task answered, what did this run promise, and which organs
of which round are on disk. Nothing of it ever leaves the site.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from not_fed.envelope.seen import WAYBILLS, note_waybill, refuse_known
from not_fed.envelope.task import Task
from not_fed.errors import BudgetError, TrustError
from not_fed.store import Store

STATE_FILE = "state.db"

_SCHEMA = f"""
{WAYBILLS}
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, terms TEXT NOT NULL, private INTEGER NOT NULL,
    started TEXT NOT NULL, ended TEXT, plan TEXT) STRICT;
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, run TEXT NOT NULL REFERENCES runs(run),
    kind TEXT NOT NULL, round INTEGER NOT NULL, roster INTEGER NOT NULL, started TEXT NOT NULL, answer TEXT,
    result TEXT, answered TEXT, UNIQUE (run, kind, round)) STRICT;
CREATE TABLE IF NOT EXISTS made (run TEXT NOT NULL, round INTEGER NOT NULL, start TEXT NOT NULL,
    organ_sha256 TEXT NOT NULL, numbers TEXT NOT NULL, notes TEXT NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS approvals (run TEXT NOT NULL, round INTEGER NOT NULL, terms TEXT NOT NULL,
    asked TEXT NOT NULL, approved TEXT, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS sums_kept (run TEXT NOT NULL, round INTEGER NOT NULL, file TEXT NOT NULL,
    organ_sha256 TEXT NOT NULL, proposal TEXT NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS sum_writes (writes INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS organs (sealed_sha256 TEXT PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL,
    sender TEXT NOT NULL, file TEXT NOT NULL, organ_sha256 TEXT NOT NULL, seconds REAL NOT NULL) STRICT;
"""


class TaskChanged(TrustError):
    """A task came twice under one id, with different content."""

    code = "task-changed"


class RoundTaken(BudgetError):
    """This site was already asked for this round of this run, by another task."""

    code = "round-taken"


class RunChanged(BudgetError):
    """The task does not keep to what the first task of its run announced."""

    code = "run-changed"


class RunEnded(BudgetError):
    """This run has ended at this site."""

    code = "run-ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOrgan:
    """A round's own organ that is on the disk, whole: whoever asks again is sent this one, sealed anew.

    Attributes:
        start: digest of the organ from which it was trained; empty for the base's own span.
        numbers, notes: what training said of it.
    """

    run: str
    round: int
    start: str
    organ_sha256: str
    numbers: Mapping[str, float | None]
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A run, or a round of one, that a person here has to agree to; `round` is 0 for the whole run."""

    run: str
    round: int
    terms: Mapping[str, Any]
    asked: str
    approved: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTask:
    """A task as this site remembers it."""

    run: str
    kind: str
    round: int
    started: str
    answered: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOrgan:
    """An organ that this site opened or made: who sent it, which sealed file it was, where it is."""

    sealed_sha256: str
    run: str
    round: int
    sender: str
    file: str
    organ_sha256: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSum:
    """The aggregate behind a blind sum that the sites have kept, and what they voted on."""

    run: str
    round: int
    file: str
    organ_sha256: str
    proposal: str


class SiteState:
    """The site's memory. Implements the envelope's `SeenWaybills`."""

    def __init__(self, home: Path) -> None:
        self._store = Store(home / STATE_FILE, schema=_SCHEMA)

    def session(self) -> AbstractContextManager[None]:
        """One connection for the block."""
        return self._store.session()

    # -- waybills: the envelope's SeenWaybills --------------------------------------------------------------------

    def check(self, waybill_key: str, /) -> None:
        """Raise WaybillReplayed when an organ under this waybill was opened here before."""
        with self._store.transaction() as database:
            refuse_known(database, waybill_key)

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Remember a waybill until it expires, and forget those that have expired: nobody can open them any more."""
        with self._store.transaction() as database:
            note_waybill(database, waybill_key, expires, now=datetime.now(UTC))

    # -- runs and tasks -------------------------------------------------------------------------------------------

    def answer_to(self, task: Task, *, sha256: str) -> Mapping[str, Any] | None:
        """The stored answer when this very task was answered before, else None.

        Raises:
            TaskChanged: the id is known with other content.
        """
        with self._store.transaction() as database:
            row = database.execute("SELECT sha256, answer FROM tasks WHERE id = ?", (task.id,)).fetchone()
        if row is None:
            return None
        if row["sha256"] != sha256:
            raise TaskChanged(
                where="task, field id",
                expected="a new id for a new task",
                got="a known one",
                hint="tell the coordinator",
            )
        return None if row["answer"] is None else json.loads(row["answer"])

    def start(self, task: Task, *, sha256: str, now: datetime) -> None:
        """Reserve this round of this run, on disk, before any work: a crash can only make the site more careful.

        Raises:
            RunChanged, RunEnded: not what the run's first task announced. RoundTaken: this round was given away.
        """
        terms = _terms(task.terms())
        with self._store.transaction() as database:
            run = database.execute("SELECT * FROM runs WHERE run = ?", (task.run,)).fetchone()
            if run is None:
                database.execute(
                    "INSERT INTO runs VALUES (?, ?, ?, ?, NULL, NULL)",
                    (task.run, terms, int(task.privacy is not None), _text(now)),
                )
            else:
                _check_same_run(run, terms)
            _reserve_round(database, task, sha256, now)

    def finish(self, task: Task, *, answer: Mapping[str, Any], result: Mapping[str, Any], now: datetime) -> None:
        """Store the answer (to send it again when asked again) and the site's own notes on the work."""
        with self._store.transaction() as database:
            updated = database.execute(
                "UPDATE tasks SET answer = ?, result = ?, answered = ? WHERE id = ?",
                (json.dumps(answer), json.dumps(result), _text(now), task.id),
            )
            if updated.rowcount != 1:
                raise _taken(task)
            if task.kind == "receive":
                database.execute("UPDATE runs SET ended = ? WHERE run = ?", (_text(now), task.run))

    def results(self, run: str) -> list[dict[str, Any]]:
        """The site's notes on each answered task of a run, in order. They hold losses: for the site's own eyes."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT kind, round, result FROM tasks WHERE run = ? AND result IS NOT NULL ORDER BY rowid", (run,)
            )
            return [{"kind": row["kind"], "round": row["round"], **json.loads(row["result"])} for row in rows]

    def plan(self, run: str) -> dict[str, Any] | None:
        """The privacy plan that was fixed for a run."""
        with self._store.transaction() as database:
            row = database.execute("SELECT plan FROM runs WHERE run = ?", (run,)).fetchone()
        return None if row is None or row["plan"] is None else dict(json.loads(row["plan"]))

    def fix_plan(self, run: str, plan: Mapping[str, Any]) -> None:
        """Fix a run's privacy plan, once."""
        with self._store.transaction() as database:
            database.execute("UPDATE runs SET plan = ? WHERE run = ? AND plan IS NULL", (json.dumps(plan), run))

    def open_runs(self) -> list[str]:
        """Runs that have begun here and not ended."""
        with self._store.transaction() as database:
            return [row["run"] for row in database.execute("SELECT run FROM runs WHERE ended IS NULL ORDER BY started")]

    def tasks(self, *, limit: int = 100) -> list[KnownTask]:
        """The newest tasks that were begun here, the newest first."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT run, kind, round, started, answered FROM tasks ORDER BY rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [KnownTask(**dict(row)) for row in rows]

    # -- what a person has to agree to -----------------------------------------------------------------------------

    def is_approved(self, run: str, round_number: int, *, terms: Mapping[str, Any]) -> bool:
        """Whether a person has agreed to these very terms; round 0 is the whole run."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT terms, approved FROM approvals WHERE run = ? AND round = ?", (run, round_number)
            ).fetchone()
        return row is not None and row["approved"] is not None and row["terms"] == _terms(terms)

    def ask(self, run: str, round_number: int, *, terms: Mapping[str, Any], now: datetime) -> None:
        """Note that somebody has to agree; other terms than before wait anew."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT INTO approvals VALUES (?, ?, ?, ?, NULL) ON CONFLICT (run, round) DO UPDATE SET "
                "terms = excluded.terms, asked = excluded.asked, approved = NULL WHERE terms <> excluded.terms",
                (run, round_number, _terms(terms), _text(now)),
            )

    def approve(self, asked: Asked, *, now: datetime) -> bool:
        """A person agrees to what they were shown; False when the terms have changed since."""
        with self._store.transaction() as database:
            done = database.execute(
                "UPDATE approvals SET approved = ? WHERE run = ? AND round = ? AND terms = ?",
                (_text(now), asked.run, asked.round, _terms(asked.terms)),
            )
        return done.rowcount == 1

    def approvals(self) -> list[Asked]:
        """Everything that was ever asked, the newest last."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM approvals ORDER BY rowid").fetchall()
        return [Asked(**{**dict(row), "terms": json.loads(row["terms"])}) for row in rows]

    # -- secure sums ----------------------------------------------------------------------------------------------

    def sum_writes(self) -> int:
        """How often the ledger of secure sums had been written to when it was last used."""
        with self._store.transaction() as database:
            row = database.execute("SELECT max(writes) AS writes FROM sum_writes").fetchone()
        return int(row["writes"] or 0)

    def note_sum_writes(self, writes: int) -> None:
        """Remember it, so that an older ledger in its place is noticed."""
        with self._store.transaction() as database:
            database.execute("DELETE FROM sum_writes WHERE writes < ?", (writes,))
            database.execute("INSERT OR IGNORE INTO sum_writes VALUES (?)", (writes,))

    def forget_sum_writes(self) -> None:
        """A new ledger of secure sums begins."""
        with self._store.transaction() as database:
            database.execute("DELETE FROM sum_writes")

    def keep_sum(self, kept: KeptSum) -> None:
        """Remember the aggregate behind a blind sum that was kept."""
        with self._store.transaction() as database:
            database.execute("INSERT OR REPLACE INTO sums_kept VALUES (?, ?, ?, ?, ?)", tuple(asdict(kept).values()))

    def kept_sum(self, run: str, round_number: int) -> KeptSum | None:
        """The aggregate behind a round's blind sum, if it was kept."""
        return next((one for one in self.kept_sums(run) if one.round == round_number), None)

    def kept_sums(self, run: str) -> list[KeptSum]:
        """All of them, by round."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM sums_kept WHERE run = ? ORDER BY round", (run,)).fetchall()
        return [KeptSum(**dict(row)) for row in rows]

    # -- organs ---------------------------------------------------------------------------------------------------

    def keep(self, organ: KeptOrgan, *, waybill: tuple[str, datetime] | None = None) -> None:
        """Remember an organ by the digest of its sealed file, and in the same moment the waybill it came under."""
        row = (organ.sealed_sha256, organ.run, organ.round, organ.sender, organ.file, organ.organ_sha256, organ.seconds)
        with self._store.transaction() as database:
            database.execute(
                "DELETE FROM organs WHERE run = ? AND round = ? AND sender = ?", (organ.run, organ.round, organ.sender)
            )
            database.execute("INSERT OR REPLACE INTO organs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if waybill is not None:
                note_waybill(database, *waybill, now=datetime.now(UTC))

    def note_made(self, made: MadeOrgan) -> None:
        """Remember that a round's own organ is whole, with what training said of it."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO made VALUES (?, ?, ?, ?, ?, ?)",
                (
                    made.run, made.round, made.start, made.organ_sha256, json.dumps(dict(made.numbers)),
                    json.dumps(dict(made.notes)),
                ),
            )  # fmt: skip

    def made(self, run: str, round_number: int) -> MadeOrgan | None:
        """A round's own organ, if training it has ended."""
        with self._store.transaction() as database:
            row = database.execute("SELECT * FROM made WHERE run = ? AND round = ?", (run, round_number)).fetchone()
        if row is None:
            return None
        return MadeOrgan(**{**dict(row), "numbers": json.loads(row["numbers"]), "notes": json.loads(row["notes"])})

    def kept(self, sealed_sha256: str) -> KeptOrgan | None:
        """The organ that came in this sealed file, if this site has it."""
        with self._store.transaction() as database:
            row = database.execute("SELECT * FROM organs WHERE sealed_sha256 = ?", (sealed_sha256,)).fetchone()
        return None if row is None else KeptOrgan(**dict(row))

    def organs(self, run: str) -> list[KeptOrgan]:
        """Every organ of a run that this site made or opened, in order."""
        with self._store.transaction() as database:
            return [
                KeptOrgan(**dict(row))
                for row in database.execute("SELECT * FROM organs WHERE run = ? ORDER BY rowid", (run,))
            ]


def _terms(terms: Mapping[str, Any]) -> str:
    return json.dumps(dict(terms), sort_keys=True)


def _check_same_run(run: sqlite3.Row, terms: str) -> None:
    if run["ended"] is not None:
        raise RunEnded(
            where="task, field run", expected="a run that goes on", got="one that ended here", hint="start a new run"
        )
    if run["terms"] != terms:
        old, new = json.loads(run["terms"]), json.loads(terms)
        changed = ", ".join(sorted(key for key in new if new[key] != old.get(key)))
        raise RunChanged(
            where="task",
            expected="what the run's first task announced",
            got=f"another {changed}",
            hint="start a new run for a new plan",
        )


def _reserve_round(database: sqlite3.Connection, task: Task, sha256: str, now: datetime) -> None:
    """One task for each step of a run. Under a newer roster it may be asked for again: who reads the answer changed.

    What is sent then is the organ that was made the first time (see `made`), so that nothing is spent twice.
    """
    step = (task.run, task.kind, task.round)
    taken = database.execute(
        "SELECT id, answer, roster FROM tasks WHERE run = ? AND kind = ? AND round = ?", step
    ).fetchone()
    if taken is not None and taken["id"] != task.id:
        if taken["answer"] is not None and taken["roster"] >= task.roster_version:
            raise _taken(task)
        database.execute(
            "DELETE FROM tasks WHERE id = ?", (taken["id"],)
        )  # nothing left under that id, and nothing will
    database.execute(
        "INSERT OR IGNORE INTO tasks (id, sha256, run, kind, round, roster, started) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (task.id, sha256, *step, task.roster_version, _text(now)),
    )


def _taken(task: Task) -> RoundTaken:
    return RoundTaken(
        where="task, field round",
        expected="one task for each round of a run",
        got=f"another one for round {task.round}",
        hint="nothing was sent; each answer spends privacy once",
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
