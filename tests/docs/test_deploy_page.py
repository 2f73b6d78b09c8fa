"""docs/deploy.md: two administrators type it, from nothing to a run that is complete; with real processes over TLS."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from not_fed.processes.ports import free_port
from tests.support.folders import records
from tests.support.typed import Desk, commands_of

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
ADDRESS = "hub.example.org:8443"
PATIENCE_S = 600.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """The machines of the page, with records at the sites and nothing else."""
    answers = {"[y/N]: ": "y", "passphrase: ": "correct horse battery", "once more: ": "correct horse battery"}
    desk = Desk(tmp_path, said={ADDRESS: f"localhost:{free_port()}"}, answers=answers)
    (tmp_path / "post").mkdir()
    for number, site in enumerate(("cardiology", "neurology")):
        lines = [json.dumps({"text": text}) for text in records(12, seed=number, shortest=6)]
        (desk.machine(site) / "notes.jsonl").write_text("\n".join(lines) + "\n")
    return desk


def wait_for(desk: Desk, machine: str, pattern: str) -> None:
    """Until a running command has said it."""
    until = time.monotonic() + PATIENCE_S
    while not any(re.search(pattern, line) for line in desk.heard(machine)):
        said = "\n".join(line for name in desk.running for line in (f"--- {name}", *desk.heard(name)))
        assert time.monotonic() < until, f"{machine} did not say {pattern!r}:\n{said}"
        assert desk.running[machine][0].poll() is None, said
        time.sleep(0.3)


def test_the_page_can_be_typed(desk: Desk) -> None:
    before, _, after = PAGE.partition("\n## 7. ")
    assert after
    try:
        desk.type_page(before)
        wait_for(desk, "hub", r"run run-1 is complete")
        desk.type_page(after)
        aggregates = [
            (desk.machine(site) / site / "organs" / "run-1" / "aggregate-2.organ").read_bytes()
            for site in ("cardiology", "neurology")
        ]
    finally:
        desk.stop()
    assert aggregates[0] == aggregates[1]


def test_the_page_names_every_thing_that_people_compare_by_telephone() -> None:
    assert len(re.findall(r"\*\*Compare by telephone\*\*", PAGE)) == 2
    typed = [one.command for one in commands_of(PAGE)]
    order = ["coordinator init", "site init", "coordinator enrol", "roster create", "roster pin", "serve", "site join"]
    places = [
        next(i for i, command in enumerate(typed) if f"not-fed {word}" in command or word in command) for word in order
    ]
    assert places == sorted(places)


def test_the_page_opens_the_port_that_the_deployment_listens_on() -> None:
    port = ADDRESS.rpartition(":")[2]
    assert f"TCP {port}" in PAGE
    assert f'listen = "0.0.0.0:{port}"' in (ROOT / "server" / "coordinator.toml").read_text()
