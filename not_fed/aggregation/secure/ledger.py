"""What a site promises in a secure sum, on disk before anything leaves: one upload, one set of sites, one round's key.

Everything that keeps an update hidden ends here. An honest site answers for one set of uploads in a round. When a round
is tried again from the same start, it answers for the same cohort, the same sites and the same lost helpers only. An
update enters one sum; a round that is over is never answered again. Each promise is committed with fsync before the
answer leaves, so that a crash can only make the site more careful. A lost or older ledger takes the keys of open
rounds with it, so that nothing that was sealed to them opens.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from not_fed import canonical
from not_fed.envelope.summing import KEY_VALIDITY, SumCall
from not_fed.errors import BudgetError, TrustError
from not_fed.store import Store

LEDGER_FILE = "sums.db"
FRESH_FOR = timedelta(days=14)  # an unused key is offered as long as this

_SCHEMA = """
PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, line BLOB NOT NULL,
    sealed BLOB, call TEXT, made TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (plan TEXT NOT NULL, round INTEGER NOT NULL, call TEXT NOT NULL, start TEXT NOT NULL,
    label TEXT, active TEXT, partial BLOB, shares BLOB, closed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (plan, round)) STRICT;
CREATE TABLE IF NOT EXISTS starts (plan TEXT NOT NULL, start TEXT NOT NULL, cohort TEXT NOT NULL, sites TEXT,
    missing TEXT, PRIMARY KEY (plan, start)) STRICT;
CREATE TABLE IF NOT EXISTS updates (sha256 TEXT PRIMARY KEY, plan TEXT NOT NULL, start TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), writes INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""


class SumRoundTaken(BudgetError):
    """This site has answered another call for this round, or its round is over."""

    code = "sum-round-taken"


class SumUploaded(BudgetError):
    """This site has sent its update for this call already."""

    code = "sum-uploaded"


class OtherCohort(BudgetError):
    """The same start is tried again with other sites: the difference of two sums could show one of them."""

    code = "sum-other-cohort"


class OtherSet(BudgetError):
    """This site has helped to open the sum of one set of uploads, and is asked for another."""

    code = "sum-other-set"


class UpdateReused(BudgetError):
    """The very same update was sent into another sum."""

    code = "sum-update-reused"


class RoundKeyGone(BudgetError):
    """The key that this round's capsules are sealed to is not here, or not any more."""

    code = "sum-key-gone"


class LedgerRolledBack(TrustError):
    """This site's memory of its secure sums is older than what it did, or is gone."""

    code = "sum-ledger-old"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKey:
    """A one-round key of this site: its signed line, and its seed sealed to the site itself."""

    number: int
    line: bytes
    sealed: bytes


class SumLedger:
    """The site's memory of its secure sums, one SQLite file of mode 0600."""

    def __init__(self, folder: Path, *, least_writes: int = 0) -> None:
        """Open it, or make a new one.

        Args:
            least_writes: how many writes another file remembers of it.
        Raises:
            LedgerRolledBack: fewer are in it: it was removed, or an older one was put in its place.
        """
        self._store = Store(folder / LEDGER_FILE, schema=_SCHEMA)
        if self.writes < least_writes:
            raise LedgerRolledBack(
                where=str(folder / LEDGER_FILE), expected=f"{least_writes} writes or more", got=str(self.writes),
                hint="put the newest one back; if it is lost: not-fed site forget-sums HOME. Nothing was sent",
            )  # fmt: skip

    @property
    def writes(self) -> int:
        """How often it was written to."""
        with self._store.transaction() as database:
            return int(database.execute("SELECT writes FROM counter").fetchone()["writes"])

    def offer(self, make: Callable[[int], OwnKey], *, now: datetime) -> bytes:
        """The signed line of a key that no call has used; `make` is asked for one when there is none."""
        with self._store.transaction() as database:
            row = database.execute(
                "SELECT line, made FROM keys WHERE call IS NULL AND sealed IS NOT NULL ORDER BY number DESC LIMIT 1"
            ).fetchone()
            if row is not None and now - datetime.fromisoformat(row["made"]) < FRESH_FOR:
                return bytes(row["line"])
            old = (now - KEY_VALIDITY).astimezone(UTC).isoformat()
            database.execute("UPDATE keys SET sealed = NULL WHERE made < ?", (old,))
            last = database.execute("SELECT max(number) AS last FROM keys").fetchone()["last"] or 0
            key = make(last + 1)
            digest = hashlib.sha256(key.line).hexdigest()
            database.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, NULL, ?)",
                (key.number, digest, key.line, key.sealed, now.astimezone(UTC).isoformat()),
            )
            _count(database)
        return key.line

    def begin(self, call: SumCall, *, me: str) -> None:
        """Give this round of this plan to one call, and one of this site's keys with it; twice the same is once.

        Raises:
            SumRoundTaken, OtherCohort, RoundKeyGone; SumUploaded: the upload has left already.
        """
        with self._store.transaction() as database:
            self._give(database, call, me)
            if self._row(database, call)["label"] is not None:
                raise _uploaded(call)

    def uploaded(self, call: SumCall, *, label_sha256: str, update_sha256: str) -> None:
        """The upload is about to leave.

        Raises:
            UpdateReused: the same change went into a sum from another start, or in another run. SumUploaded.
        """
        with self._store.transaction() as database:
            row = database.execute("SELECT plan, start FROM updates WHERE sha256 = ?", (update_sha256,)).fetchone()
            if row is not None and (row["plan"], row["start"]) != (call.plan_sha256, call.start_sha256):
                raise UpdateReused(
                    where=f"round {call.round}", expected="an update that was not sent before", got="the same again",
                    hint="nothing was sent; train again",
                )  # fmt: skip
            database.execute(
                "INSERT OR IGNORE INTO updates VALUES (?, ?, ?)", (update_sha256, call.plan_sha256, call.start_sha256)
            )
            done = database.execute(
                "UPDATE rounds SET label = ? WHERE call = ? AND label IS NULL AND closed = 0",
                (label_sha256, call.sha256),
            )
            if done.rowcount != 1:  # another process of this site was faster, or a later round has begun
                raise _uploaded(call)
            _count(database)

    def label_of(self, call: SumCall) -> str | None:
        """Digest of this site's own upload for this call, if it has sent one."""
        with self._store.transaction() as database:
            row = self._row(database, call)
        return None if row is None or row["call"] != call.sha256 else row["label"]

    def bind(
        self, call: SumCall, *, me: str, active_sha256: str, sites: Sequence[str], missing: Sequence[str] = ()
    ) -> tuple[bytes | None, bytes | None]:
        """Promise to help open the sum of this set of uploads only, and the masks of these lost helpers only.

        From one start a site opens the masks of one set of lost helpers, over all rounds that try it: two sets, one
        after the other, could open every helper's masks (tests/unit/test_secure_strategy.py).

        Returns:
            the signed partial sum and the signed shares, where they were made before.
        Raises:
            OtherSet: another set in this round; or other sites or lost helpers, when the same start was tried before.
            SumRoundTaken, OtherCohort, RoundKeyGone. Nothing was written.
        Guarantees: it is on the disk when this returns.
        Proved by: tests/attacks/test_secure_sum_server.py
        """
        with self._store.transaction() as database:
            self._give(database, call, me)
            row = self._row(database, call)
            if row["active"] not in (None, active_sha256):
                raise _other_set("the set that was named first in this round")
            key = (call.plan_sha256, call.start_sha256)
            start = database.execute("SELECT * FROM starts WHERE plan = ? AND start = ?", key).fetchone()
            names, lost = (canonical.dumps(sorted(one)).decode() for one in (sites, missing))
            if start["sites"] not in (None, names):
                raise _other_set("the sites that were summed before from this start")
            if missing and start["missing"] not in (None, lost):
                raise _other_set("the lost helpers that were named first for this start")
            database.execute(
                "UPDATE rounds SET active = ? WHERE plan = ? AND round = ?", (active_sha256, key[0], call.round)
            )
            database.execute("UPDATE starts SET sites = ? WHERE plan = ? AND start = ?", (names, *key))
            if missing:
                database.execute("UPDATE starts SET missing = ? WHERE plan = ? AND start = ?", (lost, *key))
            _count(database)
        return _bytes(row["partial"]), _bytes(row["shares"]) if missing else None

    def keep_partial(self, call: SumCall, line: bytes) -> None:
        """The signed partial sum, to be given again when asked again."""
        self._keep("partial", call, line)

    def keep_shares(self, call: SumCall, line: bytes) -> None:
        """The signed shares, to be given again when asked again."""
        self._keep("shares", call, line)

    def sealed_key(self, call: SumCall, *, me: str) -> bytes:
        """The sealed seed of the key that this call uses at this site; raises RoundKeyGone."""
        digest = {one.site: one.key_sha256 for one in call.cohort}.get(me)
        with self._store.transaction() as database:
            row = database.execute("SELECT sealed, call FROM keys WHERE sha256 = ?", (digest,)).fetchone()
        if row is None or row["sealed"] is None or row["call"] not in (None, call.sha256):
            raise _key_gone(call)
        return bytes(row["sealed"])

    def close(self, plan_sha256: str, *, before: int) -> None:
        """Rounds of this plan before that number are over: their keys are forgotten, and nobody is helped in them."""
        with self._store.transaction() as database:
            _close(database, plan_sha256, before)
            _count(database)

    # -- inside a transaction -------------------------------------------------------------------------------------

    def _give(self, database: sqlite3.Connection, call: SumCall, me: str) -> None:
        row = self._row(database, call)
        later = database.execute(
            "SELECT 1 FROM rounds WHERE plan = ? AND round > ?", (call.plan_sha256, call.round)
        ).fetchone()
        if later is not None or (row is not None and (row["closed"] or row["call"] != call.sha256)):
            raise SumRoundTaken(
                where=f"round {call.round} of run {call.run}", expected="the call that this site took part in",
                got="a round that is over" if later is not None or row["closed"] else "another one",
                hint="nothing was sent; a new round needs a new number",
            )  # fmt: skip
        self._check_cohort(database, call)
        if row is not None:
            return
        digest = {one.site: one.key_sha256 for one in call.cohort}[me]
        key = database.execute("SELECT call, sealed FROM keys WHERE sha256 = ?", (digest,)).fetchone()
        if key is None or key["sealed"] is None or key["call"] not in (None, call.sha256):
            raise _key_gone(call)
        _close(database, call.plan_sha256, call.round)
        database.execute("UPDATE keys SET call = ? WHERE sha256 = ?", (call.sha256, digest))
        database.execute(
            "INSERT INTO rounds (plan, round, call, start) VALUES (?, ?, ?, ?)",
            (call.plan_sha256, call.round, call.sha256, call.start_sha256),
        )
        _count(database)

    def _check_cohort(self, database: sqlite3.Connection, call: SumCall) -> None:
        names = canonical.dumps(call.names).decode()
        key = (call.plan_sha256, call.start_sha256)
        known = database.execute("SELECT cohort FROM starts WHERE plan = ? AND start = ?", key).fetchone()
        if known is None:
            database.execute("INSERT INTO starts VALUES (?, ?, ?, NULL, NULL)", (*key, names))
        elif known["cohort"] != names:
            raise OtherCohort(
                where=f"round {call.round}, cohort", expected="the sites that this start was tried with before",
                got=", ".join(call.names), hint="nothing was sent; another cohort needs another start, or a new run",
            )  # fmt: skip

    def _row(self, database: sqlite3.Connection, call: SumCall) -> sqlite3.Row:
        found: sqlite3.Row = database.execute(
            "SELECT * FROM rounds WHERE plan = ? AND round = ?", (call.plan_sha256, call.round)
        ).fetchone()
        return found

    def _keep(self, column: str, call: SumCall, line: bytes) -> None:
        with self._store.transaction() as database:
            database.execute(
                f"UPDATE rounds SET {column} = ? WHERE plan = ? AND round = ?",  # noqa: S608  one of two constants
                (line, call.plan_sha256, call.round),
            )
            _count(database)


def _close(database: sqlite3.Connection, plan_sha256: str, before: int) -> None:
    database.execute(
        "UPDATE keys SET sealed = NULL WHERE call IN (SELECT call FROM rounds WHERE plan = ? AND round < ?)",
        (plan_sha256, before),
    )
    database.execute("UPDATE rounds SET closed = 1 WHERE plan = ? AND round < ?", (plan_sha256, before))


def _count(database: sqlite3.Connection) -> None:
    database.execute("UPDATE counter SET writes = writes + 1")


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _uploaded(call: SumCall) -> SumUploaded:
    return SumUploaded(
        where=f"round {call.round}", expected="one upload for a call, while its round is open", got="a second one",
        hint="nothing was sent; the first one stands",
    )  # fmt: skip


def _key_gone(call: SumCall) -> RoundKeyGone:
    return RoundKeyGone(
        where=f"round {call.round} of run {call.run}", expected="a key of this site that no other call has used",
        got="none", hint="nothing was sent; this site takes part again in the next round",
    )  # fmt: skip


def _other_set(expected: str) -> OtherSet:
    return OtherSet(
        where="set of uploads", expected=expected, got="another", hint="nothing was sent; this round is over for others"
    )
