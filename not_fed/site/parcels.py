"""The sealed organs that came with a task, before any of them is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from not_fed.envelope.task import Task
from not_fed.errors import TrustError
from not_fed.site.state import SiteState


class ParcelsDiffer(TrustError):
    """What came with the task is not what the task lists."""

    code = "parcels-differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A sealed organ as it came, with its label, and the log's proof where the coordinator keeps a log."""

    label: bytes
    sealed: bytes
    proof: bytes | None = None

    @property
    def sha256(self) -> str:
        """Digest of the sealed bytes."""
        return hashlib.sha256(self.sealed).hexdigest()


def check_parcels(task: Task, parcels: Sequence[Parcel], *, me: str, state: SiteState) -> None:
    """Refuse anything but the sealed organs that the signed task lists, from those who may send them.

    Raises:
        ParcelsDiffer: one too many, one too few, one twice, one of somebody else, or one in this site's own name that
            it never made. Nothing was opened.
    Proved by: tests/journeys/test_federation_bank.py::test_a_replayed_parcel_is_refused
    """
    senders = {task.coordinator} if task.mode == "trusted" else set(task.sites)
    expected = {ref.sealed_sha256 for ref in task.parcels if ref.sender != me}
    own = [ref for ref in task.parcels if ref.sender == me]
    got = [parcel.sha256 for parcel in parcels]
    if len(got) != len(set(got)) or set(got) != expected:
        raise _differ(f"the {len(expected)} sealed organs that it lists", f"{len(got)}, not the same ones")
    if any(ref.sender not in senders for ref in task.parcels):
        raise _differ("organs of this run's senders", "one of somebody else")
    if any(state.kept(ref.sealed_sha256) is None for ref in own):
        raise _differ("organs that their senders made", "one in this site's name that it never made")


def _differ(expected: str, got: str) -> ParcelsDiffer:
    return ParcelsDiffer(
        where="task, field parcels",
        expected=expected,
        got=got,
        hint="nothing was opened; ask the coordinator for its reasons",
    )
