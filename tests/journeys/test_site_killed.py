"""kill -9 of a site's process while it trains, again and again: one organ, one reservation, one answer."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from not_fed.organ.organ import read_organ
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.simulation import Prepared
from not_fed.site.state import SiteState
from tests.support.federation import PRIVACY, a_task, ask, parcel_in, refusal, signed, tiny_prepared

EPOCHS = 30
KILLS = 6
# What a SuperNode starts for an order: a process of its own, which is told the home and the task.
WORKER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from not_fed.site.work import answer_task
answer_task(Path(sys.argv[2]).read_bytes(), parcels=[], home=Path(sys.argv[1]), now=datetime.now(UTC))
"""


def start(prepared: Prepared, order: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(prepared.sites["clinic"]), str(order)])


def kill_when(worker: subprocess.Popen[bytes], ready: Callable[[], bool], *, then_s: float) -> bool:
    """SIGKILL it a little after something is so; False when it ended before."""
    while not ready() and worker.poll() is None:
        time.sleep(0.005)
    time.sleep(then_s)
    worker.send_signal(signal.SIGKILL)
    return worker.wait() == -signal.SIGKILL


FULL = (
    """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
"""
    + WORKER
)


def test_a_site_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The kernel lets its process write no file beyond 16 KB, as a full disk or a quota would."""
    prepared = tiny_prepared(tmp_path)
    order = tmp_path / "order"
    order.write_bytes(signed(prepared, a_task(prepared)))
    command = [sys.executable, "-c", FULL, str(prepared.sites["clinic"]), str(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "DiskFull" in done.stderr, done.stderr
    assert (
        not list((prepared.sites["clinic"] / "outbox").glob("*"))
        if (prepared.sites["clinic"] / "outbox").exists()
        else True
    )
    assert refusal(ask(prepared, "clinic", order.read_bytes())) is None


@pytest.mark.parametrize("private", [True, False])
def test_a_site_killed_in_training_goes_on_and_is_charged_once(private: bool, tmp_path: Path) -> None:
    options = {"epsilon": 8.0} if private else {}
    policy = {"clinic": {"max_epochs": float(EPOCHS)}}
    prepared = tiny_prepared(tmp_path, policy=policy, rounds=1, **options)
    if private:  # room between the run's epsilon and the budget, for what a kill takes
        path = prepared.sites["clinic"] / "site.toml"
        path.write_text(path.read_text().replace("budget = 8.0", "budget = 10.0"))
    training = a_task(prepared).training.model_dump() | {"epochs": EPOCHS}
    task = a_task(prepared, privacy=PRIVACY if private else None, training=training)
    order, home = tmp_path / "order", prepared.sites["clinic"]
    order.write_bytes(signed(prepared, task))
    organ = home / "organs" / prepared.run / "own-1.organ"
    resume, chance, killed = organ.with_name(".own-1.organ.resume"), random.Random(7), 0
    for _ in range(KILLS):
        worker = start(prepared, order)
        began = (lambda: resume.exists() or organ.exists()) if private else (lambda: SiteState(home).open_runs() != [])
        killed += kill_when(worker, began, then_s=chance.uniform(0.0, 0.15 if private else 0.4))
    assert killed >= 3  # it was really in the midst of its work
    reply = ask(prepared, "clinic", order.read_bytes())
    assert refusal(reply) is None
    again = ask(prepared, "clinic", order.read_bytes())
    assert parcel_in(again) == parcel_in(reply)  # resent from the store
    assert read_organ(organ).manifest.training is not None
    assert [task.round for task in SiteState(home).tasks()] == [1]
    if private:
        (standing,) = Ledger.at(home / "ledger").standings()
        assert standing.runs == 1  # one reservation, whatever was killed
        assert standing.spent.value < standing.cap.epsilon
        claim = read_organ(organ).manifest.training["dp"]  # type: ignore[index]
        assert claim.get("repeated_steps", 0) <= killed  # only the step that each kill took is drawn, and paid, again
    assert not resume.exists()
