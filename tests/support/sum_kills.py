"""Sites of a secure sum as processes of their own: killed between promise and answer, two at a time, after a fork.

`python -m tests.support.sum_kills WHAT FOLDER TRIALS SEED` prints as JSON what was seen. One thread, so that forking is
safe. Whatever a child wrote into a file counts as having left the site.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from not_fed.aggregation.secure import SumLedger, masks
from not_fed.aggregation.secure.ledger import OtherSet, SumUploaded
from not_fed.errors import NotFedError
from tests.support.lying_sums import Asked
from tests.support.sums import NAMES, NOTHING_CLAIMED, Cohort, new_party, plan_of

ALL = list(NAMES[:4])
SETS = [ALL, ALL[:3]]
EXPECTED = (OtherSet, SumUploaded)


class World:
    """Four sites in one folder; `asked` has uploaded, `fresh` has not. Each trial works in a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trials = folder, 0
        parties = {name: new_party(name) for name in ALL}
        plan = plan_of(ALL, collude=1, vanish=1)
        self.fresh = Cohort(plan=plan, parties=parties, folder=folder / "fresh")
        self.keys = self.fresh.keys()
        self.call = self.fresh.call(self.keys)
        shutil.copytree(folder / "fresh", folder / "asked")
        cohort = Cohort(plan=plan, parties=parties, folder=folder / "asked")
        for name in ALL:
            cohort.upload(name, self.call, self.keys)
        self.asked = Asked(cohort, self.keys, self.call, cohort.uploads)
        self.helper = self.asked.helpers[0]

    def trial(self) -> tuple[Asked, Cohort, Path]:
        """A copy of both, and a folder for what leaves."""
        self.trials += 1
        folder = self.folder / f"trial {self.trials}"
        asked = self.asked.copy(folder / "asked")
        shutil.copytree(self.folder / "fresh", folder / "fresh")
        fresh = Cohort(plan=self.fresh.plan, parties=self.fresh.parties, folder=folder / "fresh")
        (folder / "left").mkdir()
        return asked, fresh, folder / "left"


def help_(asked: Asked, sites: list[str], out: Path, helper: str) -> None:
    """A helper answers; its answer leaves when it is whole."""
    statement, words = asked.help(helper, sites)
    out.with_suffix(".part").write_bytes(statement + b"\n" + words)
    out.with_suffix(".part").rename(out)


def upload(cohort: Cohort, world: World, out: Path) -> None:
    """A site uploads; its answer leaves when it is whole."""
    words = bytearray()
    uploaded = cohort.site("a").upload(
        world.call, keys=world.keys, change=[cohort.update("a")], sink=words.extend, contribution=NOTHING_CLAIMED
    )
    out.with_suffix(".part").write_bytes(uploaded.label + b"\n" + words)
    out.with_suffix(".part").rename(out)


def child(work: Callable[[], None]) -> int:
    """A process that does the work: 0 when done, 3 when refused as it should be, else 1."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except EXPECTED:
        code = 3
    except BaseException:  # noqa: BLE001  a forked child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Its exit code, or -9 for one that was killed."""
    _, status = os.waitpid(process, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_after_promise(world: World, seen: Counter[str]) -> None:
    """Killed after the ledger's commit and before the first word of the answer."""
    asked, _, left = world.trial()
    real = SumLedger.bind

    def bind_and_die(self: SumLedger, *arguments: object, **named: object) -> None:
        real(self, *arguments, **named)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        SumLedger.bind = bind_and_die  # type: ignore[method-assign]
        help_(asked, SETS[0], left / "first", world.helper)

    assert ended(child(work)) == -signal.SIGKILL
    assert not list(left.iterdir())
    _other_set_is_refused(asked, world, seen)


def _other_set_is_refused(asked: Asked, world: World, seen: Counter[str]) -> None:
    """As after a restart: the set of the one that was killed, and no other."""
    try:
        asked.help(world.helper, SETS[1])
    except OtherSet:
        seen["other refused"] += 1
    asked.help(world.helper, SETS[0])
    seen["same answered"] += 1


def kill_anywhere(world: World, seen: Counter[str], chance: random.Random) -> None:
    """Killed at any moment of an answer, or of an upload."""
    asked, fresh, left = world.trial()
    started = time.monotonic()
    help_(world.trial()[0], SETS[0], left.parent / "once", world.helper)
    took_s = time.monotonic() - started
    process = child(lambda: help_(asked, SETS[0], left / "first", world.helper))
    time.sleep(chance.uniform(0, 2 * took_s))
    os.kill(process, signal.SIGKILL)
    ended(process)
    answered = (left / "first").exists()
    try:
        asked.help(world.helper, SETS[1])
        seen["other answered"] += 1
        assert not answered, "two sets were answered"
    except OtherSet:
        seen["other refused"] += 1
        again = b"\n".join(asked.help(world.helper, SETS[0]))
        assert not answered or (left / "first").read_bytes() == again, "one set, and two answers"
    process = child(lambda: upload(fresh, world, left / "upload"))
    time.sleep(chance.uniform(0, 2 * took_s))
    os.kill(process, signal.SIGKILL)
    ended(process)
    promised = fresh.ledgers["a"].label_of(world.call)
    if (left / "upload").exists():
        assert promised == sha256((left / "upload").read_bytes().split(b"\n")[0]).hexdigest(), "left without a promise"
        seen["uploads left"] += 1
    elif promised is None:
        upload(fresh, world, left / "upload")  # nothing has left: it may be made anew
        seen["uploads made anew"] += 1
    else:
        seen["uploads lost"] += 1


def race(world: World, seen: Counter[str]) -> None:
    """Two processes of one site at once, for two sets; and two that both upload."""
    asked, fresh, left = world.trial()
    pair = [
        child(lambda sites=sites, name=name: help_(asked, sites, left / name, world.helper))  # type: ignore[misc]
        for sites, name in zip(SETS, ("first", "second"), strict=True)
    ]
    assert sorted(map(ended, pair)) == [0, 3], "two sets were answered, or none"
    pair = [child(lambda name=name: upload(fresh, world, left / name)) for name in ("up 1", "up 2")]  # type: ignore[misc]
    assert sorted(map(ended, pair)) == [0, 3], "two uploads left, or none"
    (only,) = left.glob("up *")
    label = only.read_bytes().split(b"\n")[0]
    assert fresh.ledgers["a"].label_of(world.call) == sha256(label).hexdigest()
    seen["races"] += 1


def full(world: World, seen: Counter[str]) -> None:
    """No byte more can be written to the ledger: nothing leaves."""
    asked, fresh, left = world.trial()

    def limited(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            try:
                work()
            except NotFedError as error:
                os._exit(4 if error.code == "store-damaged" else 5)

        return run

    words: list[memoryview] = []

    def helped() -> None:
        asked.help(world.helper, SETS[0], sink=words.append)

    def helping() -> None:
        try:
            helped()
        except NotFedError:
            os._exit(6 if words else 4)

    assert ended(child(limited(helping))) == 4
    assert ended(child(limited(lambda: upload(fresh, world, left / "upload")))) == 4

    def late() -> None:
        """Full only after the vector was written, when the promise is."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            fresh.site("a").upload(
                world.call, keys=world.keys, change=[fresh.update("a")], sink=lambda _: None,
                contribution=NOTHING_CLAIMED, keep=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
            )  # fmt: skip
        except NotFedError as error:
            os._exit(4 if error.code == "store-damaged" else 5)

    assert ended(child(late)) == 4
    assert not list(left.iterdir())
    assert fresh.ledgers["a"].label_of(world.call) is None
    asked.help(world.helper, SETS[1])  # control: with room it answers, for whatever comes first
    upload(fresh, world, left / "upload")
    seen["full"] += 1


def fork(world: World, seen: Counter[str]) -> None:
    """Parent and child, as two clones of one machine: no seed and no share is drawn twice."""
    _, _, left = world.trial()
    processes = [
        child(lambda name=name: (left / name).write_text(_drawn()))  # type: ignore[misc]
        for name in ("one", "two", "three")
    ]
    assert [ended(process) for process in processes] == [0, 0, 0]
    drawn = [line for path in left.iterdir() for line in path.read_text().split()] + _drawn().split()
    assert len(set(drawn)) == len(drawn) == 4 * 8, "a seed was drawn twice"
    seen["forks"] += 1


def _drawn() -> str:
    return "\n".join(masks.new_seed().hex() for _ in range(8))


def main(what: str, folder: Path, trials: int, seed: int) -> dict[str, int]:
    """All trials of one kind."""
    chance, seen, world = random.Random(seed), Counter[str](), World(folder)
    works: dict[str, Callable[[], None]] = {
        "promise": lambda: kill_after_promise(world, seen), "anywhere": lambda: kill_anywhere(world, seen, chance),
        "race": lambda: race(world, seen), "full": lambda: full(world, seen), "fork": lambda: fork(world, seen),
    }  # fmt: skip
    for _ in range(trials):
        works[what]()
    return dict(seen)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))) + "\n")
