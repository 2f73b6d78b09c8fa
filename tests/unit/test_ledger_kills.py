"""kill -9 at random moments: the ledger never knows less than what was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_kill_at_any_moment_never_loses_a_started_step(tmp_path: Path) -> None:
    """200 kills; reservations, steps and commits that the child spoke of are all there, and the chain is whole."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ledger_kills", str(tmp_path), "200", "5"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["checked"] > 150
    assert seen["started"] > 100
    assert seen["repeated"] > 10, "no run was ever interrupted"
