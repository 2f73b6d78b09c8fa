"""A log as somebody hands it over: its folder, a checkpoint, a proof of an entry, or a proof that it grew."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from not_fed import files
from not_fed.trust.log import (
    MAX_PROOF_BYTES,
    SignedCheckpoint,
    checkpoint_in,
    keys_of_log,
    read_consistency,
    verify_checkpoint,
)
from not_fed.trust.log_checkpoint import read_checkpoint
from not_fed.trust.log_folder import LogFolder
from not_fed.trust.log_memory import Compared, remember, remember_folder
from not_fed.trust.log_note import read_note
from not_fed.trust.log_proof import Consistency
from not_fed.trust.members import TrustedRoster


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSource:
    """What was found: always a checkpoint, a claim until `verify`; and perhaps what proves growth."""

    note: bytes
    origin: str
    folder: LogFolder | None = None
    consistency: Consistency | None = None

    def verify(self, roster: TrustedRoster, *, now: datetime) -> SignedCheckpoint:
        """The checkpoint, signed by a log of the roster; raises as `keys_of_log` and `verify_checkpoint`."""
        keys = keys_of_log(roster, self.origin, now=now)
        return verify_checkpoint(self.note, keys=keys, origin=self.origin, now=now)


def read_source(path: Path) -> LogSource:
    """Read whatever lies at `path`; raises NotAFile, FileTooLarge, NoteMalformed."""
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises on odd names
        folder = LogFolder(path)
        return LogSource(note=folder.note, origin=folder.checkpoint.origin, folder=folder)
    note, consistency = checkpoint_in(files.read_regular(path, max_bytes=MAX_PROOF_BYTES))
    return LogSource(
        note=note, origin=read_checkpoint(read_note(note, where=path.name)).origin, consistency=consistency
    )


def take_over(
    memory: Path, source: Path, *, roster: TrustedRoster, now: datetime, evidence: Path | None = None
) -> Compared:
    """Compare what lies at `source` with what the roster folder `memory` remembers; remember it if it is newer.

    Args:
        evidence: what shows that one grew from the other, when `source` does not: a consistency proof, or the folder
            of the log, which is then taken over first.
    Raises:
        as `remember` and `remember_folder`.
    """
    offered = read_source(source)
    keys = keys_of_log(roster, offered.origin, now=now)
    if offered.folder is not None:
        return remember_folder(memory, offered.folder, keys=keys, origin=offered.origin, now=now)
    shown = offered if evidence is None else read_source(evidence)
    consistency = shown.consistency
    if shown.folder is not None:
        newest = remember_folder(memory, shown.folder, keys=keys, origin=offered.origin, now=now).offered
        size = offered.verify(roster, now=now).size
        consistency = read_consistency(shown.folder.consistency_text(size)) if size < newest.size else None
    return remember(memory, offered.note, keys=keys, origin=offered.origin, now=now, consistency=consistency)
