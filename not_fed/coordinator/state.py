"""What the coordinator remembers, in one SQLite file: steps of each run, answers, which sealed file went to whom.

It is enough to go on after a crash without losing a round, to say exactly what the server stored and relayed, and to
show an administrator who was seen when, what went wrong and whose answer is awaited. Several processes write to it;
only one at a time, which holds `run_lock`, drives a run.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from not_fed.envelope.task import Kind
from not_fed.errors import InputError, PeerError
from not_fed.store import Store

STATE_FILE = "state.db"
LOCK_FILE = "run.lock"
LOCK_TRIES, LOCK_PAUSE_S = 20, 0.05
MAX_PROBLEMS = 1000  # whoever may knock must not fill the disk

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, plan_sha256 TEXT NOT NULL, started TEXT NOT NULL,
    ended TEXT, stopped TEXT) STRICT;
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
CREATE TABLE IF NOT EXISTS attempts (run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    number INTEGER NOT NULL, opened TEXT NOT NULL, closed TEXT, outcome TEXT, missing TEXT,
    PRIMARY KEY (run, round, kind, number)) STRICT;
CREATE TABLE IF NOT EXISTS outcomes (run TEXT NOT NULL, round INTEGER NOT NULL, outcome TEXT NOT NULL,
    why TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS round_keys (site TEXT PRIMARY KEY, sha256 TEXT NOT NULL, line BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS calls (run TEXT NOT NULL, round INTEGER NOT NULL, call BLOB NOT NULL,
    PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS call_keys (sha256 TEXT PRIMARY KEY, line BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS statements (run TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    site TEXT NOT NULL, line BLOB NOT NULL, PRIMARY KEY (run, round, kind, site)) STRICT;
CREATE TABLE IF NOT EXISTS capsules (run TEXT NOT NULL, round INTEGER NOT NULL, sender TEXT NOT NULL,
    recipient TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (run, round, sender, recipient)) STRICT;
CREATE TABLE IF NOT EXISTS sums (run TEXT NOT NULL, round INTEGER NOT NULL, active TEXT NOT NULL, missing TEXT,
    PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS proposals (run TEXT NOT NULL, round INTEGER NOT NULL, sha256 TEXT NOT NULL,
    organ_sha256 TEXT, total_sha256 TEXT, size_bytes INTEGER NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE IF NOT EXISTS seen (site TEXT PRIMARY KEY, at TEXT NOT NULL, version TEXT) STRICT;
CREATE TABLE IF NOT EXISTS problems (code TEXT NOT NULL, site TEXT NOT NULL, text TEXT NOT NULL, first TEXT NOT NULL,
    last TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (code, site, text)) STRICT;
"""

Status = Literal["sealed", "received", "refused", "waiting", "bad-answer", "silent", "late", "again", "revoked"]
GOOD = ("sealed", "received")
AttemptOutcome = Literal["enough", "too-few"]
RoundOutcome = Literal["kept", "rolled-back", "burnt"]
RunOutcome = Literal["open", "stopped", "complete"]
DeliveryKind = Literal["organ", "aggregate", "update", "partial"]


class PlanChanged(InputError):
    """federation.toml was changed while its run was going on."""

    code = "plan-changed"


class RunLocked(PeerError):
    """Another process is driving this coordinator's run."""

    code = "run-locked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One exchange with every site: train in round n, or receive the result of round n."""

    run: str
    round: int
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What one site answered in one step.

    Attributes:
        status: `sealed` or `received` count. `waiting`: it refused for now and is asked again. `late`: the step was
            over. `silent`: no answer in time. `revoked`: it is not on the roster any more. (`again`, an answer that was
            counted before, is never stored.)
    """

    run: str
    round: int
    kind: Kind
    site: str
    status: Status
    code: str | None
    sealed_sha256: str | None
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One sealed file, or one of masked words, on its way: from a site to this server, or from it to a site."""

    run: str
    round: int
    kind: DeliveryKind
    sender: str
    recipient: str
    sealed_sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One opening of a step.

    Attributes:
        opened, closed: when; not closed while it goes on.
        outcome: `enough` answers, or `too-few`; None while it goes on.
        missing: site -> why its answer does not count, for those that gave no good one.
    """

    step: Step
    number: int
    opened: datetime
    closed: datetime | None
    outcome: AttemptOutcome | None
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A round's aggregate, as it is put to the vote or used.

    Attributes:
        sha256: what votes name: the organ's digest, or that of the set that a blind sum is over.
        organ_sha256: digest of the aggregate's organ; of a blind sum once the sites have told it.
        total_sha256, size_bytes: of a blind sum's words in the bank.
    """

    sha256: str
    organ_sha256: str | None
    total_sha256: str | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PapersHeld:
    """Signed papers of a kind, or capsules, of one round."""

    round: int
    kind: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """When a site was last heard of, and the version of not-fed that it said it runs, if it said so."""

    at: datetime
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that an administrator should know; the same thing again is counted, not repeated.

    Attributes:
        site: whom it concerns; empty when nobody in particular.
    """

    code: str
    site: str
    text: str
    first: datetime
    last: datetime
    count: int


@contextmanager
def run_lock(home: Path) -> Iterator[None]:
    """Be the only process that drives the run of this home, for the block.

    Raises:
        RunLocked: another one is. It lasts as long as that process, however it ends.
    Proved by: tests/unit/test_exchange.py::test_two_server_apps_never_drive_one_home
    """
    for _ in range(LOCK_TRIES):  # whoever only looks holds it for a moment
        descriptor = _lock(home, fcntl.LOCK_EX)
        if descriptor is not None:
            break
        time.sleep(LOCK_PAUSE_S)
    else:
        raise RunLocked(
            where=str(home / LOCK_FILE),
            expected="no other process at work on this run",
            got="one that holds the lock",
            hint="nothing was done; wait until it ends, or stop it",
        )
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # so that a supervisor can name, and stop, who holds it
        yield
    finally:
        os.close(descriptor)


def is_run_locked(home: Path) -> bool:
    """Whether a process drives the run of this home now."""
    descriptor = _lock(home, fcntl.LOCK_SH)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock(home: Path, kind: int) -> int | None:
    """A descriptor that holds the lock until it is closed; None when somebody else holds it."""
    descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class CoordinatorState:
    """The coordinator's memory."""

    def __init__(self, home: Path) -> None:
        self._store = Store(home / STATE_FILE, schema=_SCHEMA)

    def session(self) -> AbstractContextManager[None]:
        """One connection for the block."""
        return self._store.session()

    def start_run(self, run: str, *, plan_sha256: str) -> None:
        """Begin a run or go on with it; one that had stopped is open again.

        Raises:
            PlanChanged: it began under another plan.
        """
        with self._store.transaction() as database:
            database.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, NULL, NULL)", (run, plan_sha256, _now()))
            known = database.execute("SELECT plan_sha256 FROM runs WHERE run = ?", (run,)).fetchone()["plan_sha256"]
            if known == plan_sha256:
                database.execute("UPDATE runs SET stopped = NULL WHERE run = ?", (run,))
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

    def stop_run(self, run: str, *, code: str) -> None:
        """The run has given up, for the reason that the code names; starting again goes on."""
        with self._store.transaction() as database:
            database.execute("UPDATE runs SET stopped = ? WHERE run = ?", (code, run))

    def began(self, run: str) -> bool:
        """Whether the run has begun: from then on its plan does not change."""
        return self.outcome(run) is not None

    def ended(self, run: str) -> bool:
        """Whether the run is complete."""
        return self.outcome(run) == "complete"

    def outcome(self, run: str) -> RunOutcome | None:
        """How the run stands; None when it has not begun."""
        with self._store.transaction() as database:
            row = database.execute("SELECT ended, stopped FROM runs WHERE run = ?", (run,)).fetchone()
        if row is None:
            return None
        return "complete" if row["ended"] is not None else "open" if row["stopped"] is None else "stopped"

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

    def reopen(self, step: Step) -> None:
        """The step is not over after all: what was counted in it counts no longer."""
        with self._store.transaction() as database:
            database.execute("UPDATE steps SET closed = NULL WHERE run = ? AND round = ? AND kind = ?", _key(step))

    # -- rounds that are over -------------------------------------------------------------------------------------

    def end_round(self, run: str, round_number: int, outcome: RoundOutcome, *, why: str = "") -> None:
        """A round is over for good: its aggregate is used, or it is not."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?)", (run, round_number, outcome, why, _now())
            )

    def round_outcomes(self, run: str) -> dict[int, tuple[RoundOutcome, str]]:
        """Round -> how it ended, and why."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM outcomes WHERE run = ? ORDER BY round", (run,)).fetchall()
        return {row["round"]: (row["outcome"], row["why"]) for row in rows}

    def propose(self, run: str, round_number: int, proposal: Proposal) -> None:
        """Note a round's aggregate; what is known of its organ later replaces what was not."""
        row = (run, round_number, *asdict(proposal).values())
        with self._store.transaction() as database:
            database.execute("INSERT OR REPLACE INTO proposals VALUES (?, ?, ?, ?, ?, ?)", row)

    def proposal(self, run: str, round_number: int) -> Proposal | None:
        """A round's aggregate, if it has come to one."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT sha256, organ_sha256, total_sha256, size_bytes FROM proposals WHERE run = ? AND round = ?",
                (run, round_number),
            ).fetchone()
        return None if row is None else Proposal(**dict(row))

    # -- secure sums ----------------------------------------------------------------------------------------------

    def offer_key(self, site: str, line: bytes, *, sha256: str) -> None:
        """Keep the key that a site offers for its next secure sum, in the place of the one before."""
        with self._store.transaction() as database:
            database.execute("INSERT OR REPLACE INTO round_keys VALUES (?, ?, ?)", (site, sha256, line))

    def offered_keys(self) -> dict[str, bytes]:
        """Site -> the key that it has offered, where no call has used it."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT site, line FROM round_keys WHERE sha256 NOT IN (SELECT sha256 FROM call_keys)"
            ).fetchall()
        return {row["site"]: bytes(row["line"]) for row in rows}

    def keep_call(self, run: str, round_number: int, call: bytes, *, keys: Mapping[str, bytes]) -> None:
        """Note a round's call before it goes out, with the keys that it uses, by digest: there is never another."""
        with self._store.transaction() as database:
            database.execute("INSERT INTO calls VALUES (?, ?, ?)", (run, round_number, call))
            database.executemany("INSERT INTO call_keys VALUES (?, ?)", list(keys.items()))

    def call(self, run: str, round_number: int) -> bytes | None:
        """A round's call."""
        with self._store.transaction() as database:
            row = database.execute("SELECT call FROM calls WHERE run = ? AND round = ?", (run, round_number)).fetchone()
        return None if row is None else bytes(row["call"])

    def call_key(self, sha256: str) -> bytes:
        """A key that a call uses."""
        with self._store.transaction() as database:
            row = database.execute("SELECT line FROM call_keys WHERE sha256 = ?", (sha256,)).fetchone()
        return bytes(row["line"])

    def keep_statement(self, step: Step, site: str, line: bytes, *, capsules: Mapping[str, bytes]) -> None:
        """Keep what a site has signed in a step, and what it sealed for others."""
        with self._store.transaction() as database:
            database.execute("INSERT OR REPLACE INTO statements VALUES (?, ?, ?, ?, ?)", (*_key(step), site, line))
            database.executemany(
                "INSERT OR REPLACE INTO capsules VALUES (?, ?, ?, ?, ?)",
                [(step.run, step.round, site, recipient, sealed) for recipient, sealed in capsules.items()],
            )

    def statements(self, step: Step) -> dict[str, bytes]:
        """Site -> what it has signed in a step."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT site, line FROM statements WHERE run = ? AND round = ? AND kind = ? ORDER BY site", _key(step)
            ).fetchall()
        return {row["site"]: bytes(row["line"]) for row in rows}

    def capsules_of(self, run: str, round_number: int, sender: str) -> dict[str, bytes]:
        """Recipient -> what `sender` sealed for it in a round."""
        return self._capsules("recipient", "sender", run, round_number, sender)

    def capsules_for(self, run: str, round_number: int, recipient: str) -> dict[str, bytes]:
        """Sender -> what it sealed for `recipient` in a round."""
        return self._capsules("sender", "recipient", run, round_number, recipient)

    def _capsules(self, by: str, of: str, run: str, round_number: int, site: str) -> dict[str, bytes]:
        query = f"SELECT {by}, sealed FROM capsules WHERE run = ? AND round = ? AND {of} = ?"  # noqa: S608  constants
        with self._store.transaction() as database:
            rows = database.execute(query, (run, round_number, site)).fetchall()
        return {row[by]: bytes(row["sealed"]) for row in rows}

    def papers(self, run: str) -> list[PapersHeld]:
        """How many signed papers and capsules of a run are kept, by round and kind."""
        signed = "SELECT round, kind, count(*) AS count, sum(length(line)) AS bytes FROM statements WHERE run = ? "
        sealed = "SELECT round, 'capsules' AS kind, count(*), sum(length(sealed)) FROM capsules WHERE run = ? "
        query = f"{signed} GROUP BY round, kind UNION ALL {sealed} GROUP BY round ORDER BY 1, 2"
        with self._store.transaction() as database:
            return [PapersHeld(**dict(row)) for row in database.execute(query, (run, run)).fetchall()]

    def fix_active(self, run: str, round_number: int, sites: Sequence[str]) -> None:
        """Fix the set of uploads that is summed, once."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO sums VALUES (?, ?, ?, NULL)", (run, round_number, json.dumps(list(sites)))
            )

    def active(self, run: str, round_number: int) -> list[str] | None:
        """The sites whose uploads are summed, once that is fixed."""
        row = self._sum(run, round_number)
        return None if row is None else json.loads(row["active"])

    def fix_missing(self, run: str, round_number: int, helpers: Sequence[str]) -> None:
        """Fix which helpers are lost, once; nobody, where all have answered."""
        with self._store.transaction() as database:
            database.execute(
                "UPDATE sums SET missing = ? WHERE run = ? AND round = ? AND missing IS NULL",
                (json.dumps(list(helpers)), run, round_number),
            )

    def missing(self, run: str, round_number: int) -> list[str]:
        """The helpers that were lost in a round."""
        row = self._sum(run, round_number)
        return [] if row is None or row["missing"] is None else json.loads(row["missing"])

    def _sum(self, run: str, round_number: int) -> sqlite3.Row | None:
        with self._store.transaction() as database:
            found: sqlite3.Row | None = database.execute(
                "SELECT * FROM sums WHERE run = ? AND round = ?", (run, round_number)
            ).fetchone()
        return found

    # -- attempts -------------------------------------------------------------------------------------------------

    def open_attempt(self, step: Step) -> int:
        """Begin to ask for a step's answers; the number of this attempt. One that was cut off goes on."""
        with self._store.transaction() as database:
            last = database.execute(
                "SELECT number, closed FROM attempts WHERE run = ? AND round = ? AND kind = ? ORDER BY number DESC",
                _key(step),
            ).fetchone()
            if last is not None and last["closed"] is None:
                return int(last["number"])
            number = 1 if last is None else int(last["number"]) + 1
            database.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL)", (*_key(step), number, _now())
            )
        return number

    def close_attempt(self, step: Step, *, outcome: AttemptOutcome, missing: Mapping[str, str]) -> None:
        """End the attempt that goes on, with who was missing and why."""
        with self._store.transaction() as database:
            database.execute(
                "UPDATE attempts SET closed = ?, outcome = ?, missing = ? "
                "WHERE run = ? AND round = ? AND kind = ? AND closed IS NULL",
                (_now(), outcome, json.dumps(dict(missing)), *_key(step)),
            )

    def attempts(self, run: str) -> list[Attempt]:
        """Every attempt at every step of a run, in order."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM attempts WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        return [_attempt(row) for row in rows]

    def saw_site(self, site: str, *, at: datetime, version: str | None = None) -> None:
        """Note that a site was heard of; the version that it named last stays."""
        with self._store.transaction() as database:
            database.execute(
                "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (site) DO UPDATE SET at = max(at, excluded.at), "
                "version = coalesce(excluded.version, version)",
                (site, _text(at), version),
            )

    def sites_seen(self) -> dict[str, Seen]:
        """Site -> when it was last heard of."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM seen ORDER BY site").fetchall()
        return {row["site"]: Seen(at=_moment(row["at"]), version=row["version"]) for row in rows}

    def problem(self, code: str, text: str, *, site: str | None = None) -> None:
        """Note something that an administrator should know; of a thousand different ones the oldest goes."""
        now = _now()
        with self._store.transaction() as database:
            database.execute(
                "INSERT INTO problems VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT (code, site, text) "
                "DO UPDATE SET last = excluded.last, count = count + 1",
                (code, site or "", text, now, now),
            )
            database.execute(
                "DELETE FROM problems WHERE rowid IN "
                "(SELECT rowid FROM problems ORDER BY last DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (MAX_PROBLEMS,),
            )

    def problems(self, limit: int = 20) -> list[Problem]:
        """The newest problems, newest first."""
        with self._store.transaction() as database:
            rows = database.execute(
                "SELECT * FROM problems ORDER BY last DESC, rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [
            Problem(
                code=row["code"], site=row["site"], text=row["text"], first=_moment(row["first"]),
                last=_moment(row["last"]), count=row["count"],
            )
            for row in rows
        ]  # fmt: skip

    def answer(self, answered: Answered) -> bool:
        """Note an answer; False when these bytes were counted before. A bad answer never replaces a good one."""
        with self._store.transaction() as database:
            key = (answered.run, answered.round, answered.kind, answered.site)
            where = "run = ? AND round = ? AND kind = ? AND site = ?"
            known = database.execute(f"SELECT status FROM answers WHERE {where}", key).fetchone()  # noqa: S608  constant text
            if known is not None and known["status"] in GOOD:
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
        found = [_answered(row) for row in rows]
        return [one for one in found if step is None or (one.round, one.kind) == (step.round, step.kind)]

    def answer_of(self, step: Step, site: str) -> Answered | None:
        """What one site answered in a step, if it did."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT * FROM answers WHERE run = ? AND round = ? AND kind = ? AND site = ?", (*_key(step), site)
            ).fetchone()
        return None if row is None else _answered(row)

    def counted(self, sealed_sha256: str) -> Answered | None:
        """The answer that this sealed organ was counted as, in whatever run."""
        with self._store.transaction() as database:
            row = database.execute("SELECT * FROM answers WHERE sealed_sha256 = ?", (sealed_sha256,)).fetchone()
        return None if row is None else _answered(row)

    def drop_answer(self, answered: Answered) -> None:
        """An answer that was counted counts no longer, and its site may be asked again."""
        with self._store.transaction() as database:
            database.execute(
                "UPDATE answers SET status = 'silent', sealed_sha256 = NULL, size_bytes = 0 "
                "WHERE run = ? AND round = ? AND kind = ? AND site = ?",
                (answered.run, answered.round, answered.kind, answered.site),
            )

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

    def deliver(self, *delivered: Delivered) -> None:
        """Note that sealed files came or went; the same one twice is one."""
        rows = [(*asdict(one).values(), _now()) for one in delivered]
        if rows:
            with self._store.transaction() as database:
                database.executemany("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def deliveries(self, run: str) -> list[Delivered]:
        """Every sealed file that came or went in a run, in order."""
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM deliveries WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        return [Delivered(**{key: row[key] for key in row.keys() if key != "at"}) for row in rows]  # noqa: SIM118


def _key(step: Step) -> tuple[str, int, str]:
    return step.run, step.round, step.kind


def _answered(row: sqlite3.Row) -> Answered:
    return Answered(**{key: row[key] for key in row.keys() if key != "at"})  # noqa: SIM118


def _attempt(row: sqlite3.Row) -> Attempt:
    return Attempt(
        step=Step(run=row["run"], round=row["round"], kind=row["kind"]),
        number=row["number"],
        opened=_moment(row["opened"]),
        closed=None if row["closed"] is None else _moment(row["closed"]),
        outcome=row["outcome"],
        missing={} if row["missing"] is None else json.loads(row["missing"]),
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
