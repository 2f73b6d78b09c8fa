"""Who serves a coordinator's home: one process, which holds HOME/serve.lock and writes HOME/flower/serve.json.

Apart from `serve` itself, so that `status` answers without what serving needs.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError, NotFedError

LOCK_FILE, FACTS_FILE = "serve.lock", "serve.json"
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServed(
                where=str(home), expected="a home that nobody serves", got="one that is served",
                hint="not-fed coordinator status shows by which process",
            ) from None  # fmt: skip
        yield
    finally:
        os.close(descriptor)
