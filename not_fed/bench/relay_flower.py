"""What the same bytes cost as one message of Flower, as it comes: the peer of `bench_relay`.

    superlink, superexec       TLS on the loopback, node keys required, app processes apart, the database on disk
    supernode, site-superexec  registered, with its own TLS on the loopback
    flwr-serverapp             sends random bytes as a uint8 array, waits for as many back, and looks at them
    flwr-clientapp             sends the complement of each byte back: equal ones would be stored, and sent, once only

Nothing of ours is in between: no gateway, no commands of ours in front of Flower's on PATH. A program that dies is
started again, which Flower's own do not do; how often is told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.bench.proc import cpu_s, memory_mb, programs
from not_fed.keys.node_key import create_node_key
from not_fed.processes import flower
from not_fed.processes.ports import free_port, listens
from not_fed.processes.supervisor import Child, Supervisor
from not_fed.processes.tls import loopback_tls

TIMEOUT_S, SAMPLE_S, START_S, SETTLE_S = 300.0, 0.1, 60.0, 3.0
NAMES = SUPERLINK, SUPEREXEC, SUPERNODE, SITE_SUPEREXEC = "superlink", "superexec", "supernode", "site-superexec"
APP = "relay"  # Flower wants [A-Za-z][A-Za-z0-9-]*
MAX_TOLD_BYTES = 1 << 16
_PYPROJECT = """\
[project]
name = "relay"
version = "0.1.0"
description = "One message there and back"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "bench"
fab-include = ["relay/*.py"]

[tool.flwr.app.components]
serverapp = "relay.server:app"
clientapp = "relay.client:app"

[tool.flwr.app.config]
size-bytes = {size_bytes}
timeout-s = {timeout_s}
told = {told}
"""
_CLIENT = '''\
"""As many bytes back as came, each of them another one."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    answer = np.invert(message.content["organ"]["bytes"].numpy())
    message.content.clear()
    return Message(RecordDict({"organ": ArrayRecord({"bytes": Array(answer)})}), reply_to=message)
'''
_SERVER = '''\
"""One message of random bytes to the only node, and a look at what comes back."""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()
BLOCK = 4 << 20


@app.main()
def main(grid, context):
    config = context.run_config
    deadline = time.monotonic() + config["timeout-s"]
    sent = np.frombuffer(os.urandom(config["size-bytes"]), np.uint8)
    content = RecordDict({"organ": ArrayRecord({"bytes": Array(sent)})})
    while not (nodes := list(grid.get_node_ids())) and time.monotonic() < deadline:
        time.sleep(0.2)
    began = time.monotonic()
    message = Message(content, message_type=MessageType.TRAIN, dst_node_id=nodes[0])
    replies = list(grid.send_and_receive([message], timeout=deadline - began))
    seconds = time.monotonic() - began
    told = {"seconds": seconds, "is_same": False, "got": "no answer"}
    if replies and replies[0].has_error():
        told["got"] = f"error {replies[0].error.code}"
    elif replies:
        back = replies[0].content["organ"]["bytes"].numpy()
        told["is_same"] = len(back) == len(sent) and all(
            np.all(np.bitwise_xor(sent[i : i + BLOCK], back[i : i + BLOCK]) == 255) for i in range(0, len(sent), BLOCK)
        )
        told["got"] = f"{len(back)} bytes"
    whole = Path(config["told"])
    part = whole.with_suffix(".part")
    part.write_text(json.dumps(told))
    part.rename(whole)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What a process had cost when it was last looked at."""

    name: str
    peak_mb: float
    cpu_s: float


def measure_flower(folder: Path, *, size_bytes: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Send one message with `size_bytes` random bytes through Flower, and as many back.

    Args:
        folder: a new one, for Flower's database and logs; the database is deleted at the end.
        timeout_s: for all of it; what was measured until then is returned with `finished` false.
    Returns:
        `seconds` from sending until the answer is in the server app's memory, or all of `timeout_s`; `peak_mb` (VmHWM)
        and `cpu_s` of each process, looked at ten times a second, so that what it does in its last tenth is missing.
    Raises:
        ChildNotReady, FlowerFailed, FlowerSilent, FlowerMissing: it did not start.
    Guarantees:
        Nothing that was started runs on.
    Proved by: tests/unit/test_bench_relay.py::test_flower_carries_a_message_there_and_back_and_nothing_runs_on
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True)
    told, deadline = folder / "told.json", time.monotonic() + timeout_s
    with _running(folder) as supervisor:
        costs: dict[int, _Cost] = {}
        time.sleep(SETTLE_S)  # what they load on their own is rest, not load
        rest_mb = {name: memory_mb(pid, "VmRSS") for name, pid in supervisor.pids().items()}
        app = _write_app(folder / APP, size_bytes=size_bytes, timeout_s=timeout_s, told=told)
        flower.run_app(app, home_folder=folder / "cli")
        while not told.exists() and time.monotonic() < deadline:
            supervisor.poll()
            _look(supervisor, costs)
            time.sleep(SAMPLE_S)
        _look(supervisor, costs)
        database_bytes = sum(path.stat().st_size for path in folder.glob("state.db*"))
        restarts = {name: supervisor.restarts(name) for name in NAMES}
    return {
        "size_bytes": size_bytes, **_result(told, timeout_s), **_by_name(costs.values()), "timeout_s": timeout_s,
        "rest_mb": rest_mb, "database_bytes": database_bytes, "restarts": restarts,
    }  # fmt: skip


@contextmanager
def _running(folder: Path) -> Iterator[Supervisor]:
    """The four programs, for the block; the node's key is registered."""
    port, site_port = free_port(), free_port()
    supervisor = Supervisor(_children(folder, port=port, site_port=site_port), say=lambda _: None)
    try:
        public = folder / "site.pub"
        public.write_text(create_node_key(folder / "site.key") + "\n")
        supervisor.start(SUPERLINK)
        flower.register_node(public, site="site", home_folder=folder / "cli")
        for name in NAMES[1:]:
            supervisor.start(name)
        yield supervisor
    finally:
        supervisor.stop_all()
        for path in folder.glob("state.db*"):
            path.unlink()


def _children(folder: Path, *, port: int, site_port: int) -> list[Child]:
    secret, site_secret = folder / "superexec.secret", folder / "site-superexec.secret"
    for path in (secret, site_secret):
        flower.write_superexec_secret(path)
    tls, site_tls = loopback_tls(folder / "tls"), loopback_tls(folder / "site-tls")
    flower.flwr_config(folder / "cli", port=port, ca=tls.ca)
    commands = (
        flower.superlink_command(port=port, tls=tls, database=folder / "state.db", secret=secret),
        flower.superexec_command(port=port, ca=tls.ca, secret=secret),
        flower.supernode_command(
            address=f"127.0.0.1:{port}", ca=tls.ca, key=folder / "site.key", node_config={}, port=site_port,
            tls=site_tls, secret=site_secret,
        ),
        flower.superexec_command(port=site_port, ca=site_tls.ca, secret=site_secret),
    )  # fmt: skip
    ports = {SUPERLINK: port, SUPERNODE: site_port}
    return [
        Child(
            name=name, argv=argv, env=flower.flower_environment(folder / f"home-{name}"),
            log=folder / f"{name}.log", cwd=folder, ready_timeout_s=START_S,
            ready=None if name not in ports else partial(listens, ports[name]),
        )
        for name, argv in zip(NAMES, commands, strict=True)
    ]  # fmt: skip


def _write_app(app: Path, *, size_bytes: int, timeout_s: float, told: Path) -> Path:
    package = app / APP
    package.mkdir(parents=True)
    (app / "pyproject.toml").write_text(
        _PYPROJECT.format(size_bytes=size_bytes, timeout_s=float(timeout_s), told=json.dumps(str(told)))
    )
    for name, text in (("__init__", ""), ("server", _SERVER), ("client", _CLIENT)):
        (package / f"{name}.py").write_text(text)
    return app


def _result(told: Path, timeout_s: float) -> dict[str, Any]:
    if not told.exists():
        return {"finished": False, "seconds": timeout_s, "got": "nothing in time"}
    found = json.loads(files.read_regular(told, max_bytes=MAX_TOLD_BYTES))
    return {"finished": bool(found["is_same"]), "seconds": found["seconds"], "got": found["got"]}


def _by_name(costs: Iterable[_Cost]) -> dict[str, dict[str, float]]:
    """The highest peak and all the CPU time of a name: a program that was started again is another process."""
    peaks: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for cost in costs:
        peaks[cost.name] = max(peaks.get(cost.name, 0.0), cost.peak_mb)
        seconds[cost.name] = seconds.get(cost.name, 0.0) + cost.cpu_s
    return {"peak_mb": peaks, "cpu_s": seconds}


def _look(supervisor: Supervisor, costs: dict[int, _Cost]) -> None:
    """Note what each process has cost so far: the four programs, and the app processes that they started."""
    for pid, name in programs({pid: name for name, pid in supervisor.pids().items()}).items():
        with suppress(OSError, KeyError):
            peak_mb, seconds = memory_mb(pid, "VmHWM"), cpu_s(pid)
            costs[pid] = _Cost(name=name, peak_mb=peak_mb, cpu_s=seconds)
