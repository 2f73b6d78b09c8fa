"""kill -9 while a roster is created, pinned, updated, changed, drafted, signed, or told of a withdrawal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.roster_kills import WORKS, make_world

ROOT = Path(__file__).parents[2]
KILLS = 9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each trial starts from."""
    folder = tmp_path_factory.mktemp("kills")
    make_world(folder / "start")
    return folder


@pytest.mark.parametrize("name", WORKS)
def test_a_kill_leaves_the_old_roster_or_the_new_one(world: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.roster_kills", name, str(world), str(KILLS), "4"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found.values()) == KILLS
    assert set(found) == {"old", "new"}, "some kills came before the decisive step and some after it"
