"""One process at a time for a folder: who holds its lock, what it says of itself, and how it is asked to end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from not_fed import files
from not_fed.errors import NotFedError

LOOK_S, PAUSE_S = 1.0, 0.05  # `is_held` takes a shared lock for a moment
MAX_FACTS_BYTES = 1 << 16


@contextmanager
def held(lock: Path, *, busy: Callable[[], NotFedError], patience_s: float = LOOK_S) -> Iterator[None]:
    """For the block no other process holds this lock; raises what `busy` makes when another one does for too long.

    Guarantees: the kernel frees the lock when its process ends, however it ends.
    """
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not _try(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise busy()
            time.sleep(PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock now; a lock that is not there or cannot be read is held by nobody."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def facts_of(lock: Path, facts: Path) -> dict[str, object] | None:
    """What the holder of a lock says about itself in a file of JSON; None when nobody holds it."""
    if not is_held(lock):
        return None
    try:
        said = json.loads(files.read_regular(facts, max_bytes=MAX_FACTS_BYTES))
    except (NotFedError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


@contextmanager
def asked_to_end(end: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `end` in the block; a second one changes nothing, so that the end is in order."""

    def wished(_: int, __: FrameType | None) -> None:
        end.set()

    before = {number: signal.signal(number, wished) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
