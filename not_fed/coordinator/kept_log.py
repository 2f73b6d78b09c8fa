"""The federation's log as its coordinator keeps it: every label that it stored, every roster and recall that it saw.

A coordinator whose keys have a `log.key`, and whose place on the roster names the log, keeps one in `HOME/log`. It puts
a label in before it hands the sealed organ to anybody, and sends a proof along; so it cannot show an organ to one site
and deny it to the others without two signed checkpoints that contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from not_fed.envelope.logged import label_entry
from not_fed.errors import TrustError
from not_fed.home import Home
from not_fed.keys import LogSigner
from not_fed.trust.log_checkpoint import log_origin
from not_fed.trust.log_entries import entry_of
from not_fed.trust.log_folder import LogFolder, create_log
from not_fed.trust.log_memory import append_remembered
from not_fed.trust.roster import TrustedRoster

FOLDER = "log"


class LogKeysDiffer(TrustError):
    """The roster names other keys for this coordinator's log than those in its key folder."""

    code = "log-keys-differ"


class KeptLog:
    """The log in a coordinator's home."""

    def __init__(self, home: Home, *, signer: LogSigner, roster: TrustedRoster, now: datetime) -> None:
        """Start the log when there is none, and enter the roster and the recalls that came with it.

        Raises:
            LogDamaged: the folder is older than what this coordinator has signed: it was restored from a copy.
        """
        self._folder, self._memory, self._signer = home.folder / FOLDER, home.folder / "roster", signer
        self._origin = log_origin(roster.federation, signer.name)
        if not self._folder.is_dir():
            create_log(self._folder, federation=roster.federation, signer=signer, now=now)
        recalls = sorted((home.folder / "roster" / "repository" / "recalls").glob("*.recall"))
        self._append([entry_of(path).entry for path in (home.folder / "roster", *recalls)], now=now)

    def enter(self, label: bytes, *, now: datetime) -> None:
        """Put a label in; twice is once. On the disk when this returns."""
        self._append([label_entry(label)], now=now)

    def newest(self) -> LogFolder:
        """The log as it is now: whatever one order needs of it comes from one tree."""
        return LogFolder(self._folder)

    @property
    def size(self) -> int:
        """How many entries the newest checkpoint has."""
        return self.newest().checkpoint.size

    def _append(self, entries: Sequence[bytes], *, now: datetime) -> None:
        append_remembered(
            self._folder, entries, signer=self._signer, memory=self._memory, origin=self._origin,
            keys=self._signer.public, now=now,
        )  # fmt: skip


def open_log(home: Home, *, name: str, roster: TrustedRoster, now: datetime) -> KeptLog | None:
    """The coordinator's log, or None where the roster names none for it.

    Raises:
        LogKeysDiffer: the roster names a log, and the keys here are not its.
    """
    named = roster.member(name, now=now).log
    if named is None:
        return None
    signer = home.log_signer()
    if signer.public != named:
        raise LogKeysDiffer(
            where=str(home.folder / "keys" / "log.key"), expected="the keys that the roster names", got="others",
            hint="restore the key folder, or let the stewards enrol the new identity",
        )  # fmt: skip
    return KeptLog(home, signer=signer, roster=roster, now=now)


def log_folder(home: Path) -> Path:
    """Where a coordinator's log lies, as anybody may copy it."""
    return home / FOLDER
