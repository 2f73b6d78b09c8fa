"""The same federation on Flower's own simulation engine, in processes that are gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed import files
from not_fed.simulation import run
from not_fed.simulation.ray_engine import EngineFailed, stop_marked
from tests.support.federation import SITES, tiny_prepared

pytestmark = pytest.mark.slow


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that carry the simulation's folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in environment and int(entry.name) != os.getpid() and command:
            found.append(command.decode(errors="replace"))
    return found


def test_both_engines_give_the_same_aggregate_and_ray_leaves_no_process(tmp_path: Path) -> None:
    inline = run(tiny_prepared(tmp_path / "inline", rounds=1))
    prepared = tiny_prepared(tmp_path / "ray", rounds=1)
    result = run(prepared, engine="ray")
    assert processes_of(prepared.folder) == []
    assert {site: sorted(rounds) for site, rounds in result.own.items()} == {site: [1] for site in SITES}
    for site in SITES:
        assert files.sha256(result.aggregates[site][1]) == files.sha256(inline.aggregates[site][1])


def test_a_failed_run_says_where_its_log_is_and_leaves_no_process(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, rounds=1)
    (prepared.coordinator / "passphrase").write_text("another\n")
    with pytest.raises(EngineFailed) as error:
        run(prepared, engine="ray")
    assert str(prepared.folder / "flower" / "log") in error.value.hint
    assert "PassphraseRefused" in (prepared.folder / "flower" / "log").read_text()
    assert processes_of(prepared.folder) == []


def test_only_processes_of_this_run_are_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    mine = subprocess.Popen(command, env={**os.environ, "FLWR_HOME": str(tmp_path / "a")})
    other = subprocess.Popen(command, env={**os.environ, "FLWR_HOME": str(tmp_path / "b")})
    try:
        stop_marked(str(tmp_path / "a"))
        assert mine.wait(10) != 0
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
