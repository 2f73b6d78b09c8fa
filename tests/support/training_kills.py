"""kill -9 at random moments of a private training that is paid from a ledger: what was started is compared with it.

Run as a script of its own (`python -m tests.support.training_kills FOLDER TRIALS SEED`), so that torch is imported
once and the process that forks has one thread. One ledger and one output for all trials: a training that was killed is
started again and goes on, until its organ is there; then the organ is taken away and the next training begins.

The witness is an append-only file that gets one byte when a step draws its units or a number is released:
whatever the ledger says, this much was started.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from not_fed.organ import private_steps
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import ToLedger
from not_fed.organ.checkpoint import open_base
from not_fed.organ.data import Records
from not_fed.organ.organ import read_organ
from not_fed.organ.train import TrainSettings, train
from not_fed.privacy.accounting import DpPlan, NoisedRelease
from not_fed.privacy.audit.probe import Probe
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.rows import STEPS
from not_fed.privacy.release import Released, release_mean_loss
from tests.support.folders import records
from tests.support.spending import Watched, charged, charges, started

PLAN = DpPlan(
    sample_rate=0.5, steps=6, noise_multiplier=40.0, max_grad_norm=1.0, divisor=5, delta=1e-5, unit="person",
    records_per_person=2, releases=(NoisedRelease(name="mean_loss", noise_multiplier=60.0),),
)  # fmt: skip
PEOPLE = Records(tuple(records(20)), tuple(f"p{number // 3}" for number in range(20)), "patient_id", 3)
STAGE_BYTES = 32
SETTINGS = TrainSettings(span=Span(1, 2), dp=PLAN, declared_units=10, max_tokens=16)


class World:
    """Base, ledger, output and witness in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, folder / "ledger"
        self.out, self.seen, self.stage = folder / "knee.organ", folder / "witness", folder / "stage"

    def train(self) -> None:
        """One training, from wherever it was killed."""
        account = ToLedger(ledger=Ledger.at(self.ledger), name="notes")
        base = open_base(self.folder / "base")
        train(base, records=PEOPLE, settings=SETTINGS, out=self.out, charge=Watched(account, self.reach))

    def witness(self) -> None:
        """From here on this process writes down what it starts, before it is computed."""
        descriptor = os.open(self.seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        draw, release = Probe.draw, release_mean_loss

        def drawn(probe: Probe, units: int) -> list[int]:
            os.write(descriptor, b"s")
            return draw(probe, units)

        def released(*args: Any, **named: Any) -> Released:  # noqa: ANN401  passed on as they are
            os.write(descriptor, b"r")
            return release(*args, **named)

        setattr(Probe, "draw", drawn)  # noqa: B010
        setattr(private_steps, "release_mean_loss", released)  # noqa: B010

    def reach(self, word: str) -> None:
        """Say how far it has come; one small write, so that a kill leaves a whole word."""
        descriptor = os.open(self.stage, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(descriptor, word.ljust(STAGE_BYTES).encode(), 0)
        os.close(descriptor)

    def check(self) -> None:
        """What is spent is never less than what was started, and the ledger is whole."""
        ledger, seen = Ledger.at(self.ledger), self.seen.read_bytes() if self.seen.exists() else b""
        ledger.verify()
        for what, byte in ((STEPS, b"s"), ("mean_loss", b"r")):
            counted, paid, witnessed = started(self.ledger, what), charged(self.ledger, what), seen.count(byte)
            assert paid >= counted >= witnessed, f"{what}: {paid} paid, {counted} counted, {witnessed} started"
        if self.out.exists():
            self._check_organ(ledger)

    def _check_organ(self, ledger: Ledger) -> None:
        how: Mapping[str, Any] = read_organ(self.out).manifest.training or {}
        ledger.require_heads([how["ledger_head"]])
        paid = charges(self.ledger)[-1]
        claim, repeats = how["dp"], paid.repeats
        assert claim["repeated_steps"] + PLAN.steps == paid.charged(STEPS)
        assert claim["repeated_releases"].get("mean_loss", 0) == repeats.get("mean_loss", 0)


def trial(world: World, *, delay_s: float) -> str:
    """One kill; returns how far the training had come."""
    world.reach("start")
    child = os.fork()
    if child == 0:
        os._exit(_quietly(world))
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a training failed by itself")
    world.check()
    stage = world.stage.read_text().strip()
    if world.out.exists():
        world.out.unlink()
        stage = "done"
    return stage


def _quietly(world: World) -> int:
    try:
        world.train()
    except BaseException as error:  # noqa: BLE001  the parent is told that it failed
        sys.stderr.write(f"{error!r}\n")
        return 1
    return 0


def main() -> None:
    """Print at which stage each kill came, and what was started and paid in the end."""
    folder, trials, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    world, moments, found = World(folder), random.Random(seed), Counter[str]()
    world.witness()
    for _ in range(2):  # the second is as quick as those that follow, and the accountant remembers the plan
        began = time.monotonic()
        world.train()
        took_s = time.monotonic() - began
        world.out.unlink()
    for _ in range(trials):
        found[trial(world, delay_s=moments.uniform(0, 0.9 * took_s))] += 1
    world.train()  # and once to the end
    world.check()
    assert not list(folder.glob(".*")), "left behind"
    total = {"witnessed": world.seen.read_bytes().count(b"s"), "started": started(world.ledger),
             "charged": charged(world.ledger), "runs": len(charges(world.ledger))}  # fmt: skip
    sys.stdout.write(json.dumps({"stages": found, **total}))


if __name__ == "__main__":
    main()
