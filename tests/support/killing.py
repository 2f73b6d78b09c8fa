"""kill -9 at random moments: a child does the work, the parent kills it and looks at what is left.

Run as a script of its own (`python -m tests.support.killing NAME FOLDER TRIALS SEED`), so that the process that forks
has one thread. Each trial works in a fresh copy of FOLDER/start; `check` names the state that it finds, or raises.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from not_fed import files
from not_fed.envelope import (
    DiskSeen,
    Expectation,
    find_delivery,
    label_path,
    open_organ,
    passport_path,
    seal_organ,
    verify_sealed,
)
from not_fed.keys import Opener, Secret, Signer, load_opener, load_signer
from not_fed.organ.checkpoint import open_base
from not_fed.organ.intake import apply_intake, plan_intake
from not_fed.trust.roster import load_roster
from tests.support.trust import FEDERATION, NOW

State = str
PASSPHRASE = Secret(b"correct horse")


@dataclass(frozen=True)
class World:
    """What a trial works with: the folder, and the keys that were laid into it by the test."""

    folder: Path

    @property
    def signer(self) -> Signer:
        """The clinic's keys."""
        return load_signer(self.folder / "clinic", passphrase=PASSPHRASE)

    @property
    def opener(self) -> Opener:
        """The hub's key."""
        return load_opener(self.folder / "hub", passphrase=PASSPHRASE)

    def has_plaintext(self) -> bool:
        """Whether any file holds a piece of the organ, its own file and published outputs aside."""
        piece = (self.folder / "knee.organ").read_bytes()[-64:]
        known = {"knee.organ", "got.organ"}
        return any(
            piece in path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name not in known and "model" not in path.parts
        )


def seal(world: World) -> None:
    """The clinic seals its organ."""
    seal_organ(
        world.folder / "knee.organ", passport=(world.folder / "knee.passport").read_bytes(), sender=world.signer,
        recipients=["hub"], roster=load_roster(world.folder / "R", now=NOW), federation=FEDERATION, round_number=3,
        out=world.folder / "new.sealed", now=NOW,
    )  # fmt: skip


def check_sealed(world: World) -> State:
    """No sealed file, or a whole one with its label."""
    path = world.folder / "new.sealed"
    if not path.exists():
        return "old"
    delivery = find_delivery(path)
    assert delivery.label is not None, "a sealed file without its label"
    roster = load_roster(world.folder / "R", now=NOW)
    assert verify_sealed(path, roster=roster, now=NOW, label=delivery.label, opener=world.opener).sender == "clinic"
    assert label_path(path).exists()
    return "new"


def open_(world: World) -> None:
    """The hub opens it."""
    open_organ(
        world.folder / "knee.sealed", opener=world.opener, roster=load_roster(world.folder / "R", now=NOW),
        out=world.folder / "got.organ", now=NOW, label=find_delivery(world.folder / "knee.sealed").label,
        seen=DiskSeen(world.folder / "R" / "trusted" / "waybills.db", now=NOW),
    )  # fmt: skip


def check_opened(world: World) -> State:
    """No organ and no plaintext, or the whole organ with its passport."""
    path = world.folder / "got.organ"
    assert not world.has_plaintext(), "plaintext was left behind"
    if not path.exists():
        return "old"
    assert _digest(path) == _digest(world.folder / "knee.organ")
    assert passport_path(path).exists()
    return "new"


def import_(world: World) -> None:
    """The hub takes it in."""
    seen = DiskSeen(world.folder / "R" / "trusted" / "waybills.db", now=NOW)
    plan = plan_intake(
        find_delivery(world.folder / "knee.sealed"), into=lambda: open_base(world.folder / "base"), opener=world.opener,
        roster=load_roster(world.folder / "R", now=NOW), now=NOW, expect=Expectation(), seen=seen,
    )  # fmt: skip
    apply_intake(plan, out=world.folder / "model", now=NOW, seen=seen)


def check_imported(world: World) -> State:
    """No model, or the whole model with its papers; the base as it was; no plaintext after any next command there."""
    with files.new_folder(world.folder / "another"):
        pass
    (world.folder / "another").rmdir()
    assert not world.has_plaintext(), "plaintext was left behind"
    base = open_base(world.folder / "base")
    assert base.sha256 == (world.folder / "base.sha256").read_text()
    if not (world.folder / "model").exists():
        return "old"
    assert open_base(world.folder / "model").sha256 == (world.folder / "model.sha256").read_text()
    assert {"passport", "transplant.json", "verified.json", "taken-out.organ"} <= {
        path.name for path in (world.folder / "model" / "not-fed").iterdir()
    }
    return "new"


WORKS: dict[str, tuple[Callable[[World], None], Callable[[World], State]]] = {
    "seal": (seal, check_sealed),
    "open": (open_, check_opened),
    "import": (import_, check_imported),
}


def trial(work: Callable[[World], None], check: Callable[[World], State], world: World, delay_s: float) -> State:
    """One kill; then the same work again, which must succeed from whatever was left."""
    child = os.fork()
    if child == 0:
        os._exit(_quietly(work, world))
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = check(world)
    if state == "old":
        work(world)
        assert check(world) == "new", "the work cannot be done again"
    left = [path.name for path in world.folder.rglob("*.part")]
    assert not left, f"left behind: {left}"
    return state


def _quietly(work: Callable[[World], None], world: World) -> int:
    try:
        work(world)
    except BaseException as error:  # noqa: BLE001  the parent looks at the files, not at this
        sys.stderr.write(f"{error!r}\n")
        return 1
    return 0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Print how often each state was found."""
    name, folder, trials, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    work, check = WORKS[name]
    moments, found = random.Random(seed), Counter[State]()
    started = time.monotonic()
    work(World(_fresh(folder)))  # once to the end: imports are warm, and how long it takes is known
    took_s = time.monotonic() - started
    for _ in range(trials):
        found[trial(work, check, World(_fresh(folder)), moments.uniform(0, 1.2 * took_s))] += 1
    sys.stdout.write(json.dumps(found))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "trial", ignore_errors=True)
    shutil.copytree(folder / "start", folder / "trial", symlinks=True)
    return folder / "trial"


if __name__ == "__main__":
    main()
