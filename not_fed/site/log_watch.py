"""A site watches the coordinator's log: it may only grow, and every organ that comes must be in it.

Each order carries the newest checkpoint with a proof that it grew from the one this site remembers, and a proof for
each sealed organ in that very tree. Where two sites compare what they remember (`not-fed log compare`), a coordinator
that shows them different logs is caught by its own signatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from not_fed.envelope.task import Task
from not_fed.errors import TrustError
from not_fed.site.parcels import Parcel
from not_fed.trust.log_checkpoint import log_origin
from not_fed.trust.log_memory import remember, remembered
from not_fed.trust.log_proof import read_consistency, read_proof
from not_fed.trust.roster import TrustedRoster

ROSTER = "roster"


class LogWithheld(TrustError):
    """The roster says that this coordinator keeps a log, and it sent no proof from it."""

    code = "log-withheld"


def seen_size(home: Path, *, federation: str, keeper: str) -> int:
    """How many entries of the keeper's log this site has seen; 0 before the first."""
    known = remembered(home / ROSTER, origin=log_origin(federation, keeper))
    return 0 if known is None else known.size


def watch_log(
    growth: bytes | None, *, parcels: Sequence[Parcel], task: Task, home: Path, roster: TrustedRoster, now: datetime
) -> None:
    """Check that the log grew from what this site remembers, that the parcels are in it, and remember it.

    Does nothing where the roster names no log for the coordinator.

    Raises:
        LogWithheld: no growth, or an organ without a proof in this very tree. LogForked, LogTruncated, LogRewritten,
        LogUnproven: the log does not grow from what is remembered; the evidence is kept in the roster folder.
        NoteMalformed, CheckpointRefused.
    Proved by: tests/journeys/test_federation_log.py
    """
    keys = roster.member(task.coordinator, now=now).log
    if keys is None:
        return
    if growth is None:
        raise _withheld("the log's growth", "none")
    proof = read_consistency(growth)
    for parcel in parcels:
        if parcel.proof is None or read_proof(parcel.proof).note != proof.note:
            raise _withheld("a proof of each sealed organ in the newest tree", "none, or one in another tree")
    origin = log_origin(task.federation, task.coordinator)
    remember(home / ROSTER, proof.note, keys=keys, origin=origin, now=now, consistency=proof)


def _withheld(expected: str, got: str) -> LogWithheld:
    return LogWithheld(
        where="order", expected=expected, got=got, hint="nothing was opened or trained; ask the coordinator"
    )
