"""kill -9 at random steps of what changes a roster; then the parent looks at what is left, and does it again.

Run as a script of its own (`python -m tests.support.roster_kills WORK FOLDER KILLS SEED`), so that the process that
forks has one thread. A step is a call into the system, as Python's audit events name them; each trial works in a fresh
copy of FOLDER/start and dies before a step chosen at random among all.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from not_fed.keys import FileSigner, Steward, load_public_identity
from not_fed.keys.identity import sign_identity
from not_fed.trust.ceremony import open_draft, propose, settle
from not_fed.trust.recall import sign_withdrawal
from not_fed.trust.roster import (
    add_member,
    add_withdrawal,
    change_stewards,
    create_roster,
    load_roster,
    pin_roster,
    root_sha256,
    update_roster,
)
from not_fed.trust.stewards import adding
from tests.support.rosters import Council, steward_identity
from tests.support.trust import FEDERATION, NOW, Site

ORGAN = "ee" * 32
LATER = NOW + timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """What a trial works with."""

    folder: Path

    def steward(self, name: str) -> Steward:
        """A steward whose keys were laid there."""
        return Steward.from_pem(name, (self.folder / f"{name}.pem").read_bytes())

    @property
    def stewards(self) -> list[Steward]:
        """Alice and bob: enough."""
        return [self.steward("alice"), self.steward("bob")]

    def version(self, name: str) -> int:
        """The version that a folder trusts; what it hands on can be pinned, and is that version or the one before."""
        folder = self.folder / name
        roster, other = load_roster(folder, now=LATER), self.folder / "newcomer"
        pin_roster(folder / "repository", root_sha256=root_sha256(folder), out=other, now=LATER)
        assert load_roster(other, now=LATER).version in (roster.version, roster.version - 1)
        shutil.rmtree(other)
        return roster.version


def make_world(folder: Path) -> None:
    """Three stewards' folders and a site's at version 1; `newer`, where a root and a withdrawal were added; a draft."""
    council = Council.make(folder)
    for steward in council.stewards:
        (folder / f"{steward.name}.pem").write_bytes(steward.pem())
    shutil.copytree(council.of("alice"), folder / "newer")
    extra = Steward.generate("dave")
    change_stewards(folder / "newer", steward=council.stewards[:2], add=[steward_identity(extra)], remove=["carol"],
                    now=NOW)  # fmt: skip
    signer = council.clinic.signer
    assert isinstance(signer, FileSigner)
    line = sign_withdrawal(signer, federation=FEDERATION, organ_sha256=ORGAN, reason="wrong", now=NOW)
    (folder / "line").write_bytes(line)
    add_withdrawal(folder / "newer", line, now=NOW)
    north = Site.make("north")
    (folder / "north.json").write_bytes(sign_identity(north.signer, seal=north.opener.recipient, now=NOW))
    council.propose(by="alice", site="south")
    shutil.move(folder / "alice" / "draft", folder / "draft")
    shutil.rmtree(folder / "alice" / "trusted" / "signed.json", ignore_errors=True)


def update(world: World) -> None:
    """A site takes a newer roster over, with another root and a withdrawal."""
    update_roster(world.folder / "site", source=world.folder / "newer", now=NOW)


def check_update(world: World) -> str:
    version, roster = world.version("site"), load_roster(world.folder / "site", now=NOW)
    assert (roster.recall_of(ORGAN, author="clinic") is None) == (version == 1), "half a state"
    return "old" if version == 1 else "new"


def add(world: World) -> None:
    """Two stewards at one machine enrol a member in one step."""
    add_member(world.folder / "alice", identity=load_public_identity(world.folder / "north.json"), roles=["author"],
               steward=world.stewards, now=NOW)  # fmt: skip


def check_add(world: World) -> str:
    version = world.version("alice")
    assert ("north" in load_roster(world.folder / "alice", now=NOW).members) == (version == 2)
    return "old" if version == 1 else "new"


def propose_draft(world: World) -> None:
    """Alice alone proposes a member: a draft."""
    edit = adding(load_public_identity(world.folder / "north.json"), roles=["author"], now=NOW)
    proposal = propose(world.folder / "carol", edit, now=NOW)
    proposal.sign(world.steward("carol"))
    settle(proposal, signed_by=world.steward("carol"))


def check_draft(world: World) -> str:
    assert world.version("carol") == 1
    place = world.folder / "carol" / "draft"
    if not place.exists():
        return "old"
    proposal = open_draft(world.folder / "bob", draft=place, now=NOW)
    assert proposal.progress[0].signed == ("carol",)
    return "new"


def sign(world: World) -> None:
    """Bob signs alice's draft, which is then enough and is published."""
    proposal = open_draft(world.folder / "bob", draft=world.folder / "draft", now=NOW)
    proposal.sign(world.steward("bob"))
    settle(proposal, signed_by=world.steward("bob"))


def check_sign(world: World) -> str:
    version = world.version("bob")
    proposal = open_draft(world.folder / "carol", draft=world.folder / "draft", now=NOW)  # the stick is still whole
    assert proposal.progress[0].signed in (("alice",), ("alice", "bob"))
    assert version == 2 or not proposal.is_enough
    return "old" if version == 1 else "new"


def create(world: World) -> None:
    """A new federation."""
    create_roster(world.folder / "own", federation=FEDERATION, steward=world.stewards, members=[], now=NOW)


def check_create(world: World) -> str:
    return "new" if (world.folder / "own").exists() and world.version("own") == 1 else "old"


def pin(world: World) -> None:
    """A site pins a roster."""
    digest = root_sha256(world.folder / "newer")
    pin_roster(world.folder / "newer", root_sha256=digest, out=world.folder / "own", now=NOW)


def check_pin(world: World) -> str:
    if not (world.folder / "own").exists():
        return "old"
    assert load_roster(world.folder / "own", now=NOW).recall_of(ORGAN, author="clinic") == "wrong"
    return "new" if world.version("own") == 2 else "half"


def withdraw(world: World) -> None:
    """A site takes a withdrawal over that came by mail."""
    add_withdrawal(world.folder / "site", (world.folder / "line").read_bytes(), now=NOW)


def check_withdraw(world: World) -> str:
    assert world.version("site") == 1
    return "old" if load_roster(world.folder / "site", now=NOW).recall_of(ORGAN, author="clinic") is None else "new"


WORKS: dict[str, tuple[Callable[[World], None], Callable[[World], str]]] = {
    "update": (update, check_update), "add": (add, check_add), "draft": (propose_draft, check_draft),
    "sign": (sign, check_sign), "create": (create, check_create), "pin": (pin, check_pin),
    "withdraw": (withdraw, check_withdraw),
}  # fmt: skip


def until(work: Callable[[World], None], world: World, *, last: int | None) -> int:
    """Fork, do the work, die before step `last`; returns how many steps there were when nobody died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def hook(event: str, _: object) -> None:
            nonlocal steps
            if event == "open" or event.partition(".")[0] in ("os", "shutil", "ctypes", "fcntl"):
                steps += 1
                if steps == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)  # before every call into the system
        work(world)
        os.write(writer, str(steps).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return int(pipe.read() or 0)


def trial(name: str, world: World, *, last: int) -> str:
    """One kill; then the same work again, from whatever was left, and nothing half-written stays."""
    work, check = WORKS[name]
    assert until(work, world, last=last) == 0, "it was to be killed"
    state = check(world)
    if state == "old" or name == "update":
        work(world)
        assert check(world) == "new", "it cannot be done again"
    if name == "update":  # a kill between the step and the copy to hand on is mended
        assert (world.folder / "site" / "repository" / "metadata" / "2.targets.json").exists()
    left = [path.name for path in world.folder.rglob("*.part")]
    assert not left or state == "new", f"left behind: {left}"
    return state


def main() -> None:
    """Print how often each state was found."""
    name, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    found, moments = Counter[str](), random.Random(seed)
    WORKS[name][0](World(_fresh(folder)))  # what is imported late is no step of the work
    steps = until(WORKS[name][0], World(_fresh(folder)), last=None)
    for last in [*sorted(moments.sample(range(1, steps), kills - 1)), steps - 1]:
        found[trial(name, World(_fresh(folder)), last=last)] += 1
    sys.stdout.write(json.dumps(found))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "trial", ignore_errors=True)
    shutil.copytree(folder / "start", folder / "trial", symlinks=True)
    return folder / "trial"


if __name__ == "__main__":
    main()
