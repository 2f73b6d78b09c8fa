"""What the coordinator remembers, in one SQLite file: steps of each run, answers, which sealed file went to whom.

It is enough to go on after a crash without losing a round, and to say exactly what the server stored and relayed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from not_fed.errors import InputError
from not_fed.store import Store

STATE_FILE = "state.db"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, plan_sha256 TEXT NOT NULL, started TEXT NOT NULL,
    ended TEXT) STRICT;
CREATE TABLE IF NOT EXISTS steps (run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, task BLOB NOT NULL,
    expires TEXT NOT NULL, closed TEXT, PRIMARY KEY (run, round, kind)) STRICT;
CREATE TABLE IF NOT EXISTS answers (run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, site TEXT NOT NULL,
    status TEXT NOT NULL, code TEXT, sealed_sha256 TEXT, size_bytes INTEGER NOT NULL, seconds REAL NOT NULL,
    at TEXT NOT NULL, PRIMARY KEY (run, round, kind, site)) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS once ON answers (sealed_sha256) WHERE sealed_sha256 IS NOT NULL;
CREATE TABLE IF NOT EXISTS aggregates (run TEXT NOT NULL, round INTEGER NOT NULL, sealed_sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, at TEXT NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS deliveries (run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    sender TEXT NOT NULL, recipient TEXT NOT NULL, sealed_sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    at TEXT NOT NULL, PRIMARY KEY (run, kind, sender, recipient, sealed_sha256)) STRICT;
CREATE TABLE IF NOT EXISTS receipts (site TEXT PRIMARY KEY, line BLOB NOT NULL, issued TEXT NOT NULL) STRICT;
"""

StepKind = Literal["train", "receive"]
Status = Literal["sealed", "received", "refused", "bad-answer", "silent"]
DeliveryKind = Literal["organ", "aggregate"]


class PlanChanged(InputError):
    """federation.toml was changed while its run was going on."""

    code = "plan-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exchange with every site: train in round n, or receive the result of round n."""

    run: str
    round: int
    kind: StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What one site answered in one step."""

    run: str
    round: int
    kind: StepKind
    site: str
    status: Status
    code: str | None
    sealed_sha256: str | None
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One sealed file on its way: from a site to this server, or from this server to a site."""

    run: str
    round: int
    kind: DeliveryKind
    sender: str
    recipient: str
    sealed_sha256: str
    size_bytes: int


class CoordinatorState:
    """The coordinator's memory."""

    def __init__(self, home: Path) -> None:
        self._store = Store(home / STATE_FILE, schema=_SCHEMA)

    def session(self) -> AbstractContextManager[None]:
        """One connection for the block."""
        return self._store.session()

    def start_run(self, run: str, *, plan_sha256: str) -> None:
        """Begin a run or go on with it.

        Raises:
            PlanChanged: it began under another plan.
        """
        with self._store.transaction() as database:
            database.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, NULL)", (run, plan_sha256, _now()))
            known = database.execute("SELECT plan_sha256 FROM runs WHERE run = ?", (run,)).fetchone()["plan_sha256"]
        if known != plan_sha256:
            raise PlanChanged(
                where="federation.toml",
                expected=f"the plan that run {run} began with",
                got="another",
                hint="name a new run",
            )

    def end_run(self, run: str) -> None:
        """The run is complete."""
        with self._store.transaction() as database:
            database.execute("UPDATE runs SET ended = ? WHERE run = ?", (_now(), run))

    def ended(self, run: str) -> bool:
        """Whether the run is complete."""
        with self._store.transaction() as database:
            row = database.execute("SELECT ended FROM runs WHERE run = ?", (run,)).fetchone()
        return row is not None and row["ended"] is not None

    def is_closed(self, step: Step) -> bool:
        """Whether a step is over."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT closed FROM steps WHERE run = ? AND round = ? AND kind = ?", _key(step)
            ).fetchone()
        return row is not None and row["closed"] is not None

    def task(self, step: Step, *, now: datetime) -> bytes | None:
        """The task that was issued for a step, while it is valid: after a crash the same one goes out again."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT task, expires FROM steps WHERE run = ? AND round = ? AND kind = ?", _key(step)
            ).fetchone()
        return None if row is None or datetime.fromisoformat(row["expires"]) <= now else row["task"]

    def tasks(self, run: str) -> list[bytes]:
        """Every signed task of a run, by round."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT task FROM steps WHERE run = ? ORDER BY round, kind DESC", (run,)).fetchall()
        return [row["task"] for row in rows]

    def issue(self, step: Step, *, task: bytes, expires: datetime) -> None:
        """Remember the task of a step before it goes out."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, NULL)", (*_key(step), task, _text(expires))
            )

    def close(self, step: Step) -> None:
        """The step is over; late answers do not count any more."""
        with self._store.transaction() as database:
            database.execute(
                "UPDATE steps SET closed = ? WHERE run = ? AND round = ? AND kind = ?", (_now(), *_key(step))
            )

    def answer(self, answered: Answered) -> bool:
        """Note an answer; False when these bytes were counted before. A bad answer never replaces a good one."""
        with self._store.transaction() as database:
            key = (answered.run, answered.round, answered.kind, answered.site)
            where = "run = ? AND round = ? AND kind = ? AND site = ?"
            known = database.execute(f"SELECT status FROM answers WHERE {where}", key).fetchone()  # noqa: S608  constant text
            if known is not None and known["status"] in ("sealed", "received"):
                return False
            used = database.execute(
                "SELECT 1 FROM answers WHERE sealed_sha256 = ?", (answered.sealed_sha256,)
            ).fetchone()
            if used is not None:
                return False
            row = tuple(asdict(answered).values())
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, _now()))
        return True

    def answers(self, run: str, *, step: Step | None = None) -> list[Answered]:
        """Answers of a run, or of one step, by round and site."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT * FROM answers WHERE run = ? ORDER BY round, kind DESC, site", (run,)
            ).fetchall()
        found = [Answered(**{key: row[key] for key in row.keys() if key != "at"}) for row in rows]  # noqa: SIM118
        return [one for one in found if step is None or (one.round, one.kind) == (step.round, step.kind)]

    def set_aggregate(self, run: str, round_number: int, *, sealed_sha256: str, size_bytes: int) -> None:
        """Note the sealed aggregate of a round."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO aggregates VALUES (?, ?, ?, ?, ?)",
                (run, round_number, sealed_sha256, size_bytes, _now()),
            )

    def aggregate(self, run: str, round_number: int) -> tuple[str, int] | None:
        """Digest and size of the sealed aggregate of a round."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT * FROM aggregates WHERE run = ? AND round = ?", (run, round_number)
            ).fetchone()
        return None if row is None else (row["sealed_sha256"], row["size_bytes"])

    def keep_receipt(self, site: str, line: bytes, *, issued: datetime) -> None:
        """Keep a site's receipt, whatever the run; an older one never replaces a newer."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT INTO receipts VALUES (?, ?, ?) ON CONFLICT (site) DO UPDATE SET line = excluded.line, "
                "issued = excluded.issued WHERE excluded.issued >= receipts.issued",
                (site, line, _text(issued)),
            )

    def receipt(self, site: str) -> bytes | None:
        """The newest receipt of a site, to be handed back to it."""
        with self._store.transaction() as database:
            row = database.execute("SELECT line FROM receipts WHERE site = ?", (site,)).fetchone()
        return None if row is None else bytes(row["line"])

    def deliver(self, delivered: Delivered) -> None:
        """Note that a sealed file came or went; the same one twice is one."""
        with self._store.transaction() as database:
            row = tuple(asdict(delivered).values())
            database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, _now()))

    def deliveries(self, run: str) -> list[Delivered]:
        """Every sealed file that came or went in a run, in order."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM deliveries WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        return [Delivered(**{key: row[key] for key in row.keys() if key != "at"}) for row in rows]  # noqa: SIM118


def _key(step: Step) -> tuple[str, int, str]:
    return step.run, step.round, step.kind


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
