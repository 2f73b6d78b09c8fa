"""A member's home folder: its keys, the file with their pass phrase, and the roster it trusts.

HOME/keys/          the key folder
HOME/passphrase     one line, 0600; a service reads it at start, so keep it where only that service can read
HOME/roster/        what `not-fed roster pin` and `roster update` keep
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError
from not_fed.keys import KeyExposed, LogSigner, Opener, Secret, Signer, load_log_signer, load_opener, load_signer
from not_fed.trust.roster import TrustedRoster, load_roster

MAX_PASSPHRASE_BYTES = 4096
SIMULATION = "NOT_FED_SIMULATION"  # a prepared simulation: DIR/coordinator and DIR/sites/*
COORDINATOR = "NOT_FED_COORDINATOR"  # a coordinator's home


def simulation_folder(flower_run_id: int) -> Path:
    """The prepared simulation for Flower's simulation engine: $NOT_FED_SIMULATION, or this run's own example."""
    chosen = os.environ.get(SIMULATION)
    return Path(chosen) if chosen else files.cache_folder() / "simulations" / f"run-{flower_run_id}"


class NoHome(InputError):
    """There is no member's home folder here."""

    code = "no-home"


@contextmanager
def new_home(home: Path, *, last: str) -> Iterator[Path]:
    """As `files.new_folder`; an empty folder that is there already (a service's, a mounted one) is filled instead.

    Args:
        last: the file without which it is no home yet: it appears after all others.
    """
    if not home.is_dir() or any(home.iterdir()):
        with files.new_folder(home) as part:
            yield part
        return
    part = home / ".new"
    part.mkdir(mode=0o700)
    try:
        yield part
        home.chmod(0o700)
        for entry in sorted(part.iterdir(), key=lambda entry: entry.name == last):
            entry.rename(home / entry.name)
        files.fsync_folder(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Home:
    """Where one member keeps what is its own."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise NoHome(
                where="home", expected="a folder", got="none", hint="check node-config home, or NOT_FED_COORDINATOR"
            )

    def signer(self) -> Signer:
        """The keys that sign; errors as `keys.load_signer`."""
        return load_signer(self.folder / "keys", passphrase=self._passphrase())

    def opener(self) -> Opener:
        """The key that opens; errors as `keys.load_opener`."""
        return load_opener(self.folder / "keys", passphrase=self._passphrase())

    def log_signer(self) -> LogSigner:
        """The keys of the log that this member keeps; errors as `keys.load_log_signer`."""
        return load_log_signer(self.folder / "keys", passphrase=self._passphrase())

    def roster(self, now: datetime) -> TrustedRoster:
        """The roster, verified again from the pinned root."""
        return load_roster(self.folder / "roster", now=now)

    def private_folder(self, name: str) -> Path:
        """A folder of mode 0700 inside the home, made when it is missing."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def inside(self, path: str) -> Path:
        """A path from this home's own settings: relative to the home, or absolute."""
        return self.folder / path

    def _passphrase(self) -> Secret:
        path = self.folder / "passphrase"
        with files.open_regular(path, max_bytes=MAX_PASSPHRASE_BYTES) as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise KeyExposed(
                    where="home, file passphrase",
                    expected="no access for group and others",
                    got="some",
                    hint="chmod 600 passphrase",
                )
            return Secret(file.read().rstrip(b"\r\n"))
