"""Refusals that pass: the site will do this very task, only not now. The coordinator asks again.

Their codes are those of `envelope.waiting`; every other refusal is an answer.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from not_fed.errors import BudgetError, InputError, PeerError
from not_fed.files import NoSpace
from not_fed.processes.alone import held, is_held
from not_fed.store import StoreDamaged

LOCK_FILE = "work.lock"
PATIENCE_S = 2.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_DATABASE = "database or disk is full"
_LOCKED_DATABASE = "database is locked"


class SiteBusy(PeerError):
    """Another process of this site is at work on a task; the coordinator will ask again."""

    code = "site-busy"


class OutsideHours(BudgetError):
    """This site trains at other hours; the coordinator will ask again."""

    code = "outside-hours"


class ApprovalAwaited(BudgetError):
    """A person at this site has to agree first; the coordinator will ask again."""

    code = "approval-awaited"


class Rehearsing(BudgetError):
    """This site only rehearses: everything was checked, nothing was trained or sent."""

    code = "rehearsal"


class DiskFull(InputError):
    """This site's disk is full; what was done so far is kept, and the coordinator will ask again."""

    code = "disk-full"


def at_work(home: Path) -> AbstractContextManager[None]:
    """For the block no other process works on a task of this home.

    Raises:
        SiteBusy: another one does.
    Guarantees: the kernel frees the lock when its process ends, however it ends.
    Proved by: tests/unit/test_site_not_now.py::test_a_second_process_does_not_work_on_a_task_of_the_same_home
    """
    return held(home / LOCK_FILE, busy=lambda: _busy(home), patience_s=PATIENCE_S)


def is_at_work(home: Path) -> bool:
    """Whether a process works on a task of this home now."""
    return is_held(home / LOCK_FILE)


@contextmanager
def room_by_type(home: Path) -> Iterator[None]:
    """A full disk inside the block is DiskFull, whoever noticed it; a database that others hold is SiteBusy.

    Proved by: tests/unit/test_site_not_now.py::test_a_full_disk_is_one_refusal_whoever_notices_it
    """
    try:
        yield
    except NoSpace as error:
        raise _full(error.where) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(str(home)) from None
    except (sqlite3.OperationalError, StoreDamaged) as error:
        text = error.got if isinstance(error, StoreDamaged) else str(error)
        if text == _FULL_DATABASE:
            raise _full(str(home)) from None
        if text == _LOCKED_DATABASE:
            raise _busy(home) from None
        raise


def _busy(home: Path) -> SiteBusy:
    return SiteBusy(
        where=str(home), expected="nobody else at work on a task here", got="another process",
        hint="nothing was done; it is tried again by itself",
    )  # fmt: skip


def _full(where: str) -> DiskFull:
    return DiskFull(
        where=where, expected="room on the disk", got="none",
        hint="free some space: what was trained is kept, and the coordinator asks again by itself",
    )  # fmt: skip
