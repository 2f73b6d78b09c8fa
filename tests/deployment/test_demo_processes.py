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
from not_fed.site.state import SiteState
from tests.support.deployed import find_processes
from tests.support.federation import tiny_prepared

pytestmark = pytest.mark.faults
SITES = ["clinic", "ward"]
SCRIPT = """
import sys
from pathlib import Path
from not_fed.simulation import run
from not_fed.site.state import SiteState
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


def is_at_work(folder: Path) -> bool:
    """Whether a site has begun with its first task."""
    sites = folder / "run" / "sites"
    return any((home / "state.db").is_file() and SiteState(home).open_runs() for home in sites.glob("*"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_federation_of_processes_leaves_nothing(sign: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    worker = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 180
    while not is_at_work(tmp_path) and time.monotonic() < deadline:
        assert worker.poll() is None
        time.sleep(0.2)
    assert is_at_work(tmp_path)
    assert len(find_processes(tmp_path)) > 6  # the commands, and Flower's programs below them
    worker.send_signal(sign)
    worker.wait(120)
    deadline = time.monotonic() + 60
    while (left := find_processes(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
