"""A private training that is killed again and again: what is spent is never less than what was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.folders import save_base
from tests.support.tiny import tiny_llama

ROOT = Path(__file__).parents[2]
TRIALS = 200


def test_two_hundred_kills_never_leave_less_spent_than_started(tmp_path: Path) -> None:
    save_base(tiny_llama(), tmp_path / "base")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.training_kills", str(tmp_path), str(TRIALS), "11"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    stages = found["stages"]
    assert sum(stages.values()) == TRIALS
    everywhere = {"start", "reserved", "step 1", "done"}
    assert everywhere <= set(stages), "kills at every stage: else nothing was shown"
    assert found["charged"] >= found["started"] >= found["witnessed"] > TRIALS / 4
