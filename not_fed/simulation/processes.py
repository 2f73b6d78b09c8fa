"""A prepared federation as a real deployment on this machine: TLS on 127.0.0.1, and the commands that people type.

    not-fed coordinator serve HOME    gateway, SuperLink, superexec, server app
    not-fed site join HOME            for each site: SuperNode, superexec, and a client app for each message

They run under a supervisor of this process and end with it, however it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from not_fed import files
from not_fed.coordinator.creating import add_deployment, invite
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.serving import serving
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.invitation import read_invitation
from not_fed.errors import PeerError
from not_fed.processes.flower import flower_environment
from not_fed.processes.ports import free_port
from not_fed.processes.supervisor import BackOff, Child, Supervisor
from not_fed.progress import Progress, silent
from not_fed.simulation.prepare import COORDINATOR, Prepared
from not_fed.site.creating import add_connection
from not_fed.site.policy import POLICY_FILE

LOGS = "processes"
START_S, POLL_S = 120.0, 0.2
STOP_S = 60.0  # each of them ends what it has started, in order
MAX_RESTARTS = 3
BACK_OFF = BackOff(first_s=2.0, longest_s=15.0)


class ProcessesFailed(PeerError):
    """A federation of real processes ended before its run was complete."""

    code = "processes-failed"


def deploy(prepared: Prepared) -> int:
    """Give a simulation's homes what a deployment needs, by the functions behind `coordinator init` and `site init`.

    Returns:
        the gateway's port.
    """
    port, now, home = free_port(), datetime.now(UTC), prepared.coordinator
    address = f"localhost:{port}"
    add_deployment(home, address=address, listen=f"127.0.0.1:{port}", base=str(prepared.base.folder), now=now)
    invitation_file = home / f"{COORDINATOR}.invitation"
    invite(home, out=invitation_file)
    invitation = read_invitation(invitation_file)
    for folder in prepared.sites.values():
        policy = (folder / POLICY_FILE).read_text(encoding="utf-8")
        text = f'bundle_sha256 = ["{invitation.bundle_sha256}"]\n{policy}'
        files.write_atomic(folder / POLICY_FILE, text.encode(), overwrite=True)
        line = add_connection(folder, invitation, now=now).enrolment.read_bytes()
        Nodes(home).enrol(line, federation=invitation.federation, coordinator=COORDINATOR, now=now)
    return port


def run_with_processes(
    prepared: Prepared, *, progress: Progress = silent, say: Callable[[str], None] = lambda _: None
) -> None:
    """Run a prepared federation as `coordinator serve` and one `site join` for each site.

    Args:
        say: told what the supervisor has to tell, such as a restart.
    Raises:
        ProcessesFailed: the run did not complete; the logs lie in the folder `processes` of the simulation.
    Guarantees: no process of this run is left, also after an interruption or a kill of this process.
    Proved by: tests/deployment/test_demo_processes.py::test_an_interrupted_federation_of_processes_leaves_nothing
    """
    deploy(prepared)
    folder = prepared.folder.resolve() / LOGS
    folder.mkdir(mode=0o700, exist_ok=True)
    names = [COORDINATOR, *prepared.sites]
    supervisor = Supervisor(_children(prepared, folder), say=say, back_off=BACK_OFF)
    try:
        supervisor.start(COORDINATOR)
        _until(supervisor, lambda: bool(serving(prepared.coordinator)), prepared, "the gateway")
        for site in prepared.sites:
            supervisor.start(site)
        state = CoordinatorState(prepared.coordinator)
        while not state.ended(prepared.run):
            supervisor.poll()
            _count(prepared, state, progress)
            if state.outcome(prepared.run) == "stopped" or any(
                supervisor.restarts(name) > MAX_RESTARTS for name in names
            ):
                raise _failed(prepared, "a complete run")
            time.sleep(POLL_S)
    finally:
        supervisor.stop_all()


def _children(prepared: Prepared, folder: Path) -> list[Child]:
    homes = {COORDINATOR: ("coordinator", "serve", prepared.coordinator)}
    homes |= {site: ("site", "join", home) for site, home in prepared.sites.items()}
    return [
        Child(
            name=name, argv=[sys.executable, "-m", "not_fed", group, verb, str(home.resolve())],
            env=flower_environment(folder / "home"), log=folder / f"{name}.log", cwd=folder, stop_s=STOP_S,
        )
        for name, (group, verb, home) in homes.items()
    ]  # fmt: skip


def _until(supervisor: Supervisor, ready: Callable[[], bool], prepared: Prepared, what: str) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        supervisor.poll()
        if time.monotonic() > deadline:
            raise _failed(prepared, what)
        time.sleep(POLL_S)


def _count(prepared: Prepared, state: CoordinatorState, progress: Progress) -> None:
    total = len(prepared.sites) * (prepared.rounds + 1)
    progress("federation", done=min(len(state.answers(prepared.run)), total), total=total)


def _failed(prepared: Prepared, expected: str) -> ProcessesFailed:
    return ProcessesFailed(
        where="real processes", expected=expected, got="an early end", hint=f"see {prepared.folder / LOGS}"
    )
