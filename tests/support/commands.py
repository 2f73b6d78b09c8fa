"""The command as attack tests run it: real key folders, the federation's clock, in this process or in many."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from not_fed.cli import delivery, envelope, intake
from not_fed.cli import main as command
from not_fed.keys import Secret, Steward, create_keys, load_opener, load_signer
from not_fed.trust.roster import create_roster, load_roster
from tests.support.trust import FEDERATION, NOW, Federation, Parcel, Site

PASSPHRASE = b"correct horse"
ROLES = {"clinic": ["author", "receiver"], "hub": ["aggregator", "receiver"], "lab": ["author", "receiver"]}
CLOCKS: tuple[ModuleType, ...] = (delivery, envelope, intake)  # what asks for the time
LATER = """
from tests.support.commands import CLOCKS, Noon
from not_fed.cli.main import main
for module in CLOCKS:
    module.datetime = Noon
main()
"""


class Noon(datetime):
    """A clock that shows the moment at which test parcels are sealed."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """Always the same."""
        return NOW.astimezone(tz)


class Outcome(NamedTuple):
    """What a command left: exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The code of the error that `--json` printed, or nothing."""
        return str(json.loads(self.err.strip().rpartition("\n")[2])["code"]) if self.code else ""

    @property
    def result(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        value: dict[str, Any] = json.loads(self.out)
        return value


@dataclass(frozen=True)
class World:
    """A federation whose members have key folders in `keys`."""

    keys: Path
    federation: Federation

    @classmethod
    def make(cls, folder: Path) -> World:
        """New keys under a passphrase that costs nothing to try, and a roster."""
        for name in ROLES:
            create_keys(folder / name, name=name, passphrase=Secret(PASSPHRASE), work_factor=2)
        sites = {
            name: Site(
                load_signer(folder / name, passphrase=Secret(PASSPHRASE)),
                load_opener(folder / name, passphrase=Secret(PASSPHRASE)),
            )
            for name in ROLES
        }
        steward, roster = Steward.generate("steward"), folder / "roster"
        members = [(sites[name].public, roles) for name, roles in ROLES.items()]
        digest = create_roster(roster, federation=FEDERATION, steward=steward, members=members, now=NOW)
        return cls(folder, Federation(**sites, steward=steward, folder=roster, root_sha256=digest,
                                      roster=load_roster(roster, now=NOW)))  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """One test's desk: a parcel, a roster folder of its own, and the command."""

    parcel: Parcel
    world: World
    run: Callable[..., Outcome]

    @property
    def folder(self) -> Path:
        """Where the parcel lies, and where commands run."""
        return self.parcel.folder

    def words(self, verb: str, *more: object, by: str = "hub", sealed: object = "knee.sealed") -> list[str]:
        """`not-fed VERB S` with the reader's keys and this desk's roster."""
        pw = ("--passphrase-file", self.world.keys / "pw")
        return [str(word) for word in (verb, sealed, "--roster", "R", "--identity", self.world.keys / by, *pw, *more)]


def desk_in(folder: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A fresh desk in an empty folder."""
    shutil.copytree(world.federation.folder, folder / "R", symlinks=True)
    (world.keys / "pw").write_bytes(PASSPHRASE + b"\n")
    (world.keys / "pw").chmod(0o600)
    monkeypatch.chdir(folder)
    for module in CLOCKS:
        monkeypatch.setattr(module, "datetime", Noon)

    return Desk(Parcel(folder, world.federation), world, runner(monkeypatch, capsys))


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`not-fed WORDS` in this process."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["not-fed", *map(str, words)])
        capsys.readouterr()
        try:
            command.main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


def run_together(folder: Path, commands: Sequence[Sequence[str]]) -> list[Outcome]:
    """Several commands in processes of their own, at the same time."""
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    running = [
        subprocess.Popen([sys.executable, "-c", LATER, *words], cwd=folder, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for words in commands
    ]  # fmt: skip
    outcomes = []
    for process in running:
        out, err = process.communicate(timeout=120)
        outcomes.append(Outcome(process.returncode, out, err))
    return outcomes
