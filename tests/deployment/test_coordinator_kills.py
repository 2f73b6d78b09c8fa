"""A coordinator killed between any two things that it writes goes on with the round it was in, in each mode.

Everybody works in one process here, so the sites die with it: the power of a whole room fails. With processes of
their own, and a coordinator that dies alone, see test_killed.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.coordinator_kills import MOMENTS, ONE_LABEL_MORE

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.faults


def found(mode: str, folder: Path) -> dict[str, Any]:
    """How each moment ended."""
    (folder / mode).mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.coordinator_kills", mode, str(folder / mode)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("mode", MOMENTS)
def test_a_coordinator_killed_at_any_moment_ends_with_the_undisturbed_result(
    mode: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kills = found(mode, tmp_path_factory.mktemp("kills"))
    undisturbed = kills.pop("undisturbed")
    assert undisturbed["ended"]
    assert undisturbed["counted"] == 6
    assert len({digest for name, digest in undisturbed["organs"].items() if name.endswith("aggregate-2.organ")}) == 1
    assert set(kills) == set(MOMENTS[mode])
    for moment, end in kills.items():
        assert end.pop("killed") == -signal.SIGKILL, f"not reached: {moment}"
        assert end.pop("again") == 0, moment
        end["entries"] -= moment == ONE_LABEL_MORE
        assert end == undisturbed, moment
