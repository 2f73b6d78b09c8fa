"""A simulation's homes as a deployment on this machine: what it ends with, and what it leaves running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from not_fed import files
from not_fed.simulation import run
from tests.support.deployed import find_processes
from tests.support.federation import tiny_prepared

pytestmark = pytest.mark.faults
SITES = ["clinic", "ward"]
SCRIPT = """
import sys
from pathlib import Path
from not_fed.simulation import run
from tests.support.federation import tiny_prepared
run(tiny_prepared(Path(sys.argv[1]), sites=["clinic", "ward"], rounds=5), engine="processes")
"""


def test_a_federation_of_processes_ends_with_the_aggregate_of_one_process(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path / "deployed", sites=SITES, rounds=1)
    result = run(prepared, engine="processes")
    inline = run(tiny_prepared(tmp_path / "inline", sites=SITES, rounds=1))
    assert result.aggregate is not None
    assert inline.aggregate is not None
    assert files.sha256(result.aggregate) == files.sha256(inline.aggregate)
    assert find_processes(prepared.folder) == []


def test_an_interrupted_federation_of_processes_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    worker = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 90
    while len(find_processes(tmp_path)) < 6 and time.monotonic() < deadline:  # several commands with theirs
        assert worker.poll() is None
        time.sleep(0.2)
    worker.send_signal(signal.SIGINT)
    worker.wait(120)
    deadline = time.monotonic() + 60
    while (left := find_processes(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
