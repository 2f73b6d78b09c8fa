"""Several processes, one budget."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from not_fed.privacy.accounting import mechanisms_of
from not_fed.privacy.ledger.cap import Cap
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.rows import STEPS
from not_fed.privacy.ledger.scope import DEFAULT_EPSILON
from not_fed.privacy.renyi import renyi_divergence
from tests.support.ledgers import DELTA, notes, plan

ROOT = Path(__file__).parents[2]


def spenders(folder: Path, count: int) -> list[int]:
    """Start them all at once; what each was let do."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.ledger_spender", str(folder), f"site {number}"],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )
        for number in range(count)
    ]  # fmt: skip
    said = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * count
    return [int(answer) for answer in said]


def test_processes_at_once_never_overspend(tmp_path: Path) -> None:
    """Four begin on an empty folder together. In whatever order they come, no run more than one process would get."""
    folder = tmp_path / "ledger"
    admitted = spenders(folder, 4)
    cap = Cap.new(epsilon=DEFAULT_EPSILON, delta=DELTA)
    fitting = int(cap.bound / renyi_divergence(mechanisms_of([plan()]), order=cap.order))
    assert sum(admitted) == fitting == 10
    ledger = Ledger.at(folder)
    assert ledger.verify() > 6
    everybody = ledger.identify(["the note that all have"])
    standing = ledger.standing(everybody, unit="record")
    assert standing.runs == fitting
    assert standing.enforced <= standing.cap.epsilon == 10


def test_two_processes_on_one_run_share_its_reservation(tmp_path: Path) -> None:
    """The same run started twice: every step of either is counted, and more than planned are charged."""
    first, second = Ledger.at(tmp_path / "ledger"), Ledger.at(tmp_path / "ledger")
    data = first.identify(notes())
    left = first.reserve(data, name="notes", plan=plan(steps=3), run="one")
    right = second.reserve(data, name="notes", plan=plan(steps=3), run="one")
    for step in range(3):
        left.start_step(remaining=2 - step)
        right.start_step(remaining=2 - step)
    assert max(left.repeated_steps, right.repeated_steps) == 3
    (entry,) = first.history(data)
    assert entry.charge.charged(STEPS) == 6
    left.commit()
    assert first.standing(data, unit="record").runs == 1
