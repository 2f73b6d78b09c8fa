"""The sealed organs that came with a task, before any of them is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from not_fed import files
from not_fed.envelope.task import Task
from not_fed.errors import PeerError, TrustError
from not_fed.site.state import SiteState


class ParcelsDiffer(TrustError):
    """What came with the task is not what the task lists."""

    code = "parcels-differ"


class ParcelAwaited(PeerError):
    """An organ of an earlier round did not come with the task, and this site does not have it any more."""

    code = "parcel-awaited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A sealed organ that came or can be fetched, with its label, and the log's proof where there is a log.

    Nothing of it is written before the task that names it was permitted, and then one file at a time.

    Attributes:
        sha256: digest of the sealed bytes.
        source: the file, where there is one already: it is read in place and stays. Else what writes the bytes.
    """

    label: bytes
    sha256: str
    source: Path | Callable[[Path], None] = field(repr=False)
    proof: bytes | None = None

    @classmethod
    def inline(cls, sealed: bytes, *, label: bytes, proof: bytes | None = None) -> Self:
        """One that came inside the message."""

        def bring(out: Path) -> None:
            files.write_atomic(out, sealed, overwrite=True)

        return cls(label=label, sha256=hashlib.sha256(sealed).hexdigest(), source=bring, proof=proof)

    @classmethod
    def at(cls, path: Path, *, label: bytes, proof: bytes | None = None) -> Self:
        """One that lies on this machine: it is hashed as it is read, and neither moved nor deleted."""
        return cls(label=label, sha256=files.sha256(path), source=path, proof=proof)

    @contextmanager
    def on_disk(self, inbox: Path) -> Iterator[Path]:
        """The sealed file for the block: brought to the inbox, and gone afterwards, unless it has a place of its own.

        Raises:
            PeerError: it could not be fetched; what came of it is kept by whoever fetches, to go on from there.
        """
        if isinstance(self.source, Path):
            yield self.source
            return
        path = inbox / f"{self.sha256}.sealed"
        try:
            self.source(path)
            yield path
        finally:
            path.unlink(missing_ok=True)


def check_parcels(task: Task, parcels: Sequence[Parcel], *, me: str, state: SiteState) -> None:
    """Refuse anything but the sealed organs that the signed task lists, from those who may send them.

    Of rounds before the newest one, those may be missing that this site opened for an earlier task.

    Raises:
        ParcelsDiffer: one too many, one too few, one twice, one of somebody else, or one in this site's own name that
            it never made. Nothing was opened.
        ParcelAwaited: one of an earlier round is missing that this site has not opened; it may come with the next try.
    Proved by: tests/journeys/test_federation_bank.py::test_a_replayed_parcel_is_refused,
        tests/journeys/test_rotating_spans.py::test_an_organ_that_is_gone_is_asked_for_again
    """
    senders = set(task.sites) if task.mode == "bank" else {task.coordinator}
    newest = max((ref.round for ref in task.parcels), default=0)
    expected = {ref.sealed_sha256: ref for ref in task.parcels if ref.sender != me}
    own = [ref for ref in task.parcels if ref.sender == me]
    got = [parcel.sha256 for parcel in parcels]
    missing = [ref for digest, ref in expected.items() if digest not in got]
    if len(got) != len(set(got)) or not expected.keys() >= set(got) or any(ref.round == newest for ref in missing):
        raise _differ(f"the {len(expected)} sealed organs that it lists", f"{len(got)}, not the same ones")
    if any(state.kept(ref.sealed_sha256) is None for ref in missing):
        raise ParcelAwaited(
            where="task, field parcels", expected="every organ that this site has not opened yet",
            got=f"{len(missing):,} too few", hint="nothing was opened; the coordinator sends them all",
        )  # fmt: skip
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
