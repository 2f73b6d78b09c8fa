"""Who serves a coordinator's home: one process, which holds HOME/serve.lock and writes HOME/flower/serve.json.

Apart from `serve` itself, so that `status` answers without what serving needs.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError, NotFedError

LOCK_FILE, FACTS_FILE = "serve.lock", "serve.json"
LOOKS_S = 1.0  # `serving` takes a shared lock for a moment
FLOWER = "flower"
SCHEMA = "not-fed/serving/1"


class AlreadyServed(InputError):
    """Another process serves this coordinator."""

    code = "already-served"


def serving(home: Path) -> dict[str, object] | None:
    """What the process that serves `home` says about itself; None when there is none."""
    path = home / LOCK_FILE
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            with suppress(NotFedError, ValueError):
                facts = json.loads(files.read_regular(home / FLOWER / FACTS_FILE, max_bytes=1 << 16))
                return facts if isinstance(facts, dict) else {}
            return {}
    return None


@contextmanager
def serving_alone(home: Path) -> Iterator[None]:
    """Be the only process that serves this home, for the block; raises AlreadyServed."""
    descriptor = os.open(home / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOOKS_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise AlreadyServed(
                    where=str(home), expected="a home that nobody serves", got="one that is served",
                    hint="not-fed coordinator status shows by which process",
                )  # fmt: skip
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
