"""Who serves a coordinator's home: one process, which holds HOME/serve.lock and writes HOME/flower/serve.json.

Apart from `serve` itself, so that `status` answers without what serving needs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from not_fed.errors import InputError
from not_fed.processes.alone import facts_of, held

LOCK_FILE, FACTS_FILE = "serve.lock", "serve.json"
FLOWER = "flower"
SCHEMA = "not-fed/serving/1"


class AlreadyServed(InputError):
    """Another process serves this coordinator."""

    code = "already-served"


def serving(home: Path) -> dict[str, object] | None:
    """What the process that serves `home` says about itself; None when there is none."""
    return facts_of(home / LOCK_FILE, home / FLOWER / FACTS_FILE)


def serving_alone(home: Path) -> AbstractContextManager[None]:
    """Be the only process that serves this home, for the block; raises AlreadyServed."""
    return held(home / LOCK_FILE, busy=lambda: _served(home))


def _served(home: Path) -> AlreadyServed:
    return AlreadyServed(
        where=str(home), expected="a home that nobody serves", got="one that is served",
        hint="not-fed coordinator status shows by which process",
    )  # fmt: skip
