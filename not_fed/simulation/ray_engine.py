"""A run on Flower's own simulation engine: `flwr run` against a SuperLink of our own, and nothing left running after.

Flower's command would start a hidden SuperLink that stays; this starts one itself, as a child that it can stop. Ray
starts processes that belong to nobody's group: whatever carries this run's FLWR_HOME in its environment is stopped too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from not_fed.coordinator.state import CoordinatorState
from not_fed.errors import InputError, PeerError
from not_fed.home import SIMULATION
from not_fed.processes.bundle import write_bundle
from not_fed.progress import Progress, silent
from not_fed.simulation.prepare import Prepared

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
END_PATIENCE_S = 15.0
_CONFIG = """\
[superlink]
default = "simulation"
[superlink.simulation]
address = "127.0.0.1:{port}"
insecure = true
"""


class EngineMissing(InputError):
    """Flower's simulation engine is not installed."""

    code = "engine-missing"


class EngineFailed(PeerError):
    """Flower's simulation engine ended before the federation was complete."""

    code = "engine-failed"


def run_with_ray(prepared: Prepared, *, progress: Progress = silent) -> None:
    """Run a prepared federation through `flwr run`.

    Raises:
        EngineMissing: no Ray, or no `flwr` beside this Python.
        EngineFailed: the run did not complete; its log lies in the folder `flower` of the simulation.
    Guarantees: no process of this run is left, also after an interruption.
    """
    commands = {name: _command(name) for name in ("flwr", "flower-superlink")}
    folder = prepared.folder / "flower"
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(folder / "not-fed", ignore_errors=True)
    (folder / "not-fed").mkdir()
    write_bundle(folder / "not-fed")
    short = Path(tempfile.mkdtemp(prefix="nf-"))  # Ray's sockets need a short path
    port = _free_port()
    env = _environment(prepared, flower_home=folder / "home", ray=short)
    (folder / "home").mkdir(exist_ok=True)
    (folder / "home" / "config.toml").write_text(_CONFIG.format(port=port), encoding="utf-8")
    try:
        with (
            (folder / "log").open("wb") as log,
            _superlink(commands["flower-superlink"], port, env, log=folder / "log"),
        ):
            nodes = len(prepared.sites)
            command = [
                commands["flwr"],
                "run",
                str(folder / "not-fed"),
                "simulation",
                "--stream",
                "--federation-config",
                f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={_processors(nodes)}",
            ]
            progress("starting Flower's simulation engine", done=0, total=1)
            flwr = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
            _wait(flwr, prepared)
    finally:
        stop_marked(env["FLWR_HOME"])
        shutil.rmtree(short, ignore_errors=True)
    if not CoordinatorState(prepared.coordinator).ended(prepared.run):
        raise EngineFailed(
            where="flwr run", expected="a complete federation", got="an early end", hint=f"see {folder / 'log'}"
        )


def stop_marked(flower_home: str) -> None:
    """Stop every process of this user that carries this FLWR_HOME: politely, then for good."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (left := list(_marked(flower_home))) and time.monotonic() < deadline:
            for process in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, sign)
            time.sleep(0.2)


def _marked(flower_home: str) -> Iterator[int]:
    marker = f"FLWR_HOME={flower_home}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            environment = (entry / "environ").read_bytes().split(b"\0")
            if marker in environment and state != "Z" and int(entry.name) != os.getpid():
                yield int(entry.name)


@contextmanager
def _superlink(command: str, port: int, env: Mapping[str, str], *, log: Path) -> Iterator[None]:
    """Flower's server for simulations, as long as the block runs."""
    arguments = [
        command,
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("ab") as out:
        process = subprocess.Popen(arguments, env=env, stdout=out, stderr=out, start_new_session=True)  # noqa: S603
    try:
        _wait_for_health(port, process, log)
        yield
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_health(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
        ):
            return
        time.sleep(0.2)
    raise EngineFailed(where="flower-superlink", expected="to be ready", got="no answer", hint=f"see {log}")


def _wait(flwr: subprocess.Popen[bytes], prepared: Prepared) -> None:
    """Until `flwr run` ends; it may hang after the run, so the coordinator's own word counts as well."""
    state, ended = CoordinatorState(prepared.coordinator), 0.0
    try:
        while flwr.poll() is None:
            if state.ended(prepared.run):
                ended = ended or time.monotonic()
                if time.monotonic() - ended > END_PATIENCE_S:
                    return
            time.sleep(0.5)
    finally:
        if flwr.poll() is None:
            flwr.kill()
            flwr.wait()


def _environment(prepared: Prepared, *, flower_home: Path, ray: Path) -> dict[str, str]:
    """Nothing phones home, nothing is installed, everything lies in the simulation's own folder."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        SIMULATION: str(prepared.folder),
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(ray),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _command(name: str) -> str:
    path = Path(sys.executable).parent / name
    found = str(path) if path.is_file() else shutil.which(name)
    if found is None or not _has_ray():
        raise EngineMissing(
            where="engine ray",
            expected="Flower's simulation engine",
            got="not installed",
            hint="pip install 'not-fed[ray]', or --engine inline",
        )
    return found


def _has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


def _processors(nodes: int) -> int:
    return max(1, min(nodes, os.cpu_count() or 1))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
