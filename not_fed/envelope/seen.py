"""Memories of the waybills that were opened: an organ that is sent a second time is refused, after a restart too.

A waybill is remembered until it expires, and a day longer, since clocks differ; after that its own date refuses it.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from not_fed import canonical
from not_fed.envelope.waybill import WaybillReplayed
from not_fed.store import Store

REMEMBERED_LONGER = timedelta(days=1)
WAYBILLS = "CREATE TABLE IF NOT EXISTS waybills (id TEXT PRIMARY KEY, expires TEXT NOT NULL) STRICT;"


class SeenWaybills(Protocol):
    """A memory of the waybills that were opened, at least until they expire."""

    def check(self, waybill_key: str, /) -> None:
        """Raises WaybillReplayed when this id was recorded."""

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Remember it until `expires`; raises WaybillReplayed when it is there already."""


class MemorySeen:
    """A memory that lasts as long as this object."""

    def __init__(self) -> None:
        self._seen: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def check(self, waybill_key: str, /) -> None:
        """Raises WaybillReplayed when it was recorded."""
        if waybill_key in self._seen:
            raise WaybillReplayed.seen(waybill_key)

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Remember it; raises WaybillReplayed when somebody else was faster."""
        with self._lock:
            if waybill_key in self._seen:
                raise WaybillReplayed.seen(waybill_key)
            self._seen[waybill_key] = expires


class DiskSeen:
    """A memory in a file of its own, on the disk before an organ counts as opened."""

    def __init__(self, path: Path, *, now: datetime) -> None:
        """`path` is made when it is missing; `now` says which memories are old enough to be dropped."""
        self._store, self._now = Store(path, schema=WAYBILLS), now

    def check(self, waybill_key: str, /) -> None:
        """Raises WaybillReplayed when it was recorded, by whatever process."""
        with self._store.transaction() as database:
            refuse_known(database, waybill_key)

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Remember it; raises WaybillReplayed when another process was faster."""
        with self._store.transaction() as database:
            refuse_known(database, waybill_key)
            note_waybill(database, waybill_key, expires, now=self._now)


class RecordOnly:
    """Lets everything pass and notes it in another memory: for whoever means to open something again."""

    def __init__(self, memory: SeenWaybills) -> None:
        self._memory = memory

    def check(self, waybill_key: str, /) -> None:
        """Nothing: it may have been opened before."""

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Remember it, if it is not remembered already."""
        with suppress(WaybillReplayed):
            self._memory.record(waybill_key, expires)


class CheckOnly:
    """Looks waybills up in another memory and leaves recording to whoever knows when the work is done.

    For work that goes on after an organ was opened: a crash before its end must not make the only copy a replay.
    """

    def __init__(self, memory: SeenWaybills) -> None:
        self._memory = memory

    def check(self, waybill_key: str, /) -> None:
        """Raises WaybillReplayed when the memory has it."""
        self._memory.check(waybill_key)

    def record(self, waybill_key: str, expires: datetime, /) -> None:
        """Nothing yet."""


def refuse_known(database: sqlite3.Connection, waybill_key: str) -> None:
    """Raises WaybillReplayed when the id is in the table of `WAYBILLS`."""
    if database.execute("SELECT 1 FROM waybills WHERE id = ?", (waybill_key,)).fetchone():
        raise WaybillReplayed.seen(waybill_key)


def note_waybill(database: sqlite3.Connection, waybill_key: str, expires: datetime, *, now: datetime) -> None:
    """Put the id into the table, and drop those that are over: nobody can open them any more."""
    database.execute("DELETE FROM waybills WHERE expires < ?", (canonical.format_time(now - REMEMBERED_LONGER),))
    database.execute("INSERT OR IGNORE INTO waybills VALUES (?, ?)", (waybill_key, canonical.format_time(expires)))
