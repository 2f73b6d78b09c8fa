"""One private SQLite file: written ahead, durable at each commit, of mode 0600 from its first byte."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from not_fed.errors import InputError

BUSY_TIMEOUT_S = 30.0


class StoreDamaged(InputError):
    """What this machine remembers cannot be read."""

    code = "store-damaged"


class Store:
    """A file with a schema. Each transaction is one connection, unless a session keeps one open."""

    def __init__(self, path: Path, *, schema: str) -> None:
        self._path, self._schema = path, schema
        self._open: sqlite3.Connection | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep one connection for all transactions in the block: closing the last one costs a checkpoint."""
        with closing(self._connect()) as database:
            self._open = database
            try:
                yield
            finally:
                self._open = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing of it."""
        if self._open is not None:
            yield from self._within(self._open)
        else:
            with closing(self._connect()) as database:
                yield from self._within(database)

    def _within(self, database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:  # damaged pages, or locked for longer than anybody should
            raise self._damaged(str(error)) from None

    def _connect(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._damaged(os.strerror(error.errno or 0).lower()) from None
        database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                database.execute(f"PRAGMA {pragma}")
            database.executescript(self._schema)
        except sqlite3.DatabaseError as error:
            database.close()
            raise self._damaged(str(error)) from None
        return database

    def _damaged(self, got: str) -> StoreDamaged:
        return StoreDamaged(
            where=str(self._path), expected="a database of its own, whole and free", got=got,
            hint="nothing was done; restore it from a backup, and ask who else can write here",
        )  # fmt: skip
