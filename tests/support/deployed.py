"""A federation of real processes on this machine: its commands, its bad network, what it said, and its sure end.

    coordinator   `not-fed coordinator serve HOME`: gateway, SuperLink, superexec, server app
    each site     `not-fed site join HOME`: SuperNode, superexec, a client app for each message
    between them  one `Proxy` for each site

Everything that a federation starts carries its folder in its environment or command line. `close` ends all of it, and
a guard process does the same when the test itself is killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from not_fed import files
from not_fed.coordinator.creating import add_deployment, invite
from not_fed.coordinator.deployment import DEPLOYMENT_FILE
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.state import Answered, CoordinatorState, Step
from not_fed.envelope.invitation import read_invitation
from not_fed.processes.ports import free_port
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import COORDINATOR
from not_fed.site.creating import add_connection
from not_fed.site.policy import POLICY_FILE
from tests.support.proxy import Proxy

T = TypeVar("T")
COMMAND: Final = str(Path(sys.executable).parent / "not-fed")
PATIENCE_S: Final = 90.0
LOG_TAIL: Final = 4000
FAKETIME_PLACES: Final = (
    "/usr/lib/*/faketime",
    "/usr/lib/faketime",
    "/usr/lib64/faketime",
    "/opt/homebrew/lib/faketime",
)

# Reads until its parent is gone, then ends whatever carries the folder. Runs on the standard library, in a session of
# its own, so that ^C and a kill of the test's process group leave it alive.
GUARD: Final = """
import os, signal, sys, time
from pathlib import Path
folder = sys.argv[1].encode()
sys.stdin.read()
for _ in range(20):
    left = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) == os.getpid():
                continue
            if folder in (entry / "environ").read_bytes() or folder in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                left += 1
        except OSError:
            pass
    if not left:
        break
    time.sleep(0.1)
"""


class Lost(AssertionError):
    """What was waited for did not happen; what everybody said follows."""


@dataclass
class Daemon:
    """A command that keeps running."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the command itself; what it starts has others."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """Everything that it printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: no last words, no tidying up."""
        self.process.kill()
        self.process.wait(30)

    def stop(self, *, timeout_s: float = 40.0) -> int:
        """SIGTERM, as a service manager does; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def wait(self, *, timeout_s: float = PATIENCE_S) -> int:
        """Until it ends by itself; its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Lost(f"{self.name} did not end; it said:\n{self.said()[-LOG_TAIL:]}") from None


@dataclass
class Deployed:
    """Homes, proxies and processes of one federation.

    Attributes:
        prepared: the homes as a simulation has them; `address` and its papers were added.
        port: where the gateway listens; sites are told their proxy's port instead.
        commands: running ones by name, `coordinator` or the site's.
    """

    prepared: Prepared
    port: int
    proxies: Mapping[str, Proxy]
    commands: dict[str, Daemon] = field(default_factory=dict)
    _guard: subprocess.Popen[bytes] | None = None
    _number: int = 0

    # -- start and end --------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Everything of this federation lies in it, and nothing else does."""
        return self.prepared.folder

    def serve(self, *words: str, environment: Mapping[str, str] | None = None) -> Daemon:
        """`not-fed coordinator serve`; returns when its gateway answers."""
        daemon = self.start(
            "coordinator", ["coordinator", "serve", str(self.prepared.coordinator), *words], environment
        )
        self.until("the gateway listens", lambda: self.serving() if daemon.is_alive else self.fail("serve ended"))
        return daemon

    def join(self, site: str, *words: str, environment: Mapping[str, str] | None = None) -> Daemon:
        """`not-fed site join`; returns at once."""
        return self.start(site, ["site", "join", str(self.prepared.sites[site]), *words], environment)

    def join_all(self) -> None:
        """Every site."""
        for site in self.prepared.sites:
            self.join(site)

    def start(self, name: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Daemon:
        """Any command of this federation, in the background; it is ended with it."""
        if (before := self.commands.get(name)) is not None and before.is_alive:
            raise AssertionError(f"{name} runs already")
        if self._guard is None:
            self._guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
            )
        self._number += 1
        log = self.folder / f"{self._number:02d}-{name}.said"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [COMMAND, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder,
                env=self.environment() | dict(environment or {}), start_new_session=True,
            )  # fmt: skip
        self.commands[name] = daemon = Daemon(name, process, log)
        return daemon

    def run(self, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> Said:
        """A command to its end."""
        done = subprocess.run(
            [COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, cwd=self.folder, text=True, check=False,
            env=self.environment() | dict(environment or {}), timeout=timeout_s,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def environment(self) -> dict[str, str]:
        """What every command of this federation is started with."""
        kept = {name: value for name, value in os.environ.items() if name not in ("NOT_FED_LEDGER", "PYTHONPATH")}
        return kept | {"OMP_NUM_THREADS": "1", "NOT_FED_TEST": str(self.folder)}

    def power_off(self, name: str) -> None:
        """SIGKILL for everything of the coordinator or a site at once, as when its machine loses power."""
        home = self.prepared.coordinator if name == "coordinator" else self.prepared.sites[name]
        self.commands[name].kill()
        while left := self.processes(of=home):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def close(self) -> None:
        """Sites first, then the coordinator, in order; then whatever is left, by its id."""
        for daemon in sorted(self.commands.values(), key=lambda one: one.name == "coordinator"):
            if daemon.is_alive:
                daemon.process.terminate()
        deadline = time.monotonic() + 20
        for daemon in self.commands.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.process.wait(max(0.1, deadline - time.monotonic()))
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            for daemon in self.commands.values():
                daemon.process.poll()
        for daemon in self.commands.values():
            daemon.process.wait(10)
        for proxy in self.proxies.values():
            proxy.close()
        if self._guard is not None:
            self._guard.communicate(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, where: TracebackType | None) -> None:
        self.close()

    # -- look -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> CoordinatorState:
        """The coordinator's own memory, read while it works."""
        return CoordinatorState(self.prepared.coordinator)

    def serving(self) -> dict[str, Any] | None:
        """What `serve` wrote about itself, when it is the running one's."""
        with suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads((self.prepared.coordinator / "flower" / "serve.json").read_bytes())
            if facts["pid"] == self.commands["coordinator"].pid:
                return facts
        return None

    def pid_of(self, child: str) -> int:
        """Of `superlink` or `superexec`, as `serve` says; 0 while there is none."""
        facts = self.serving()
        return 0 if facts is None else int(facts["pids"].get(child, 0))

    def processes(self, *, having: str = "", of: Path | None = None) -> list[int]:
        """Processes of this federation, by id.

        Args:
            having: words of their command line.
            of: only those that carry this home in environment or command line.
        """
        return [pid for pid in find_processes(of or self.folder) if having in command_line(pid)]

    def answers(self, round_number: int, *, kind: str = "train", run: str | None = None) -> dict[str, Answered]:
        """Site -> its answer in a round, as the coordinator counted it."""
        step = Step(run=run or self.prepared.run, round=round_number, kind=kind)  # type: ignore[arg-type]
        return {one.site: one for one in self.state.answers(step.run, step=step)}

    def is_closed(self, round_number: int, *, kind: str = "train", run: str | None = None) -> bool:
        """Whether a step is over."""
        return self.state.is_closed(Step(run=run or self.prepared.run, round=round_number, kind=kind))  # type: ignore[arg-type]

    def open_round(self) -> int:
        """The round that is being worked on; one more than the last when all are over."""
        return next((n for n in range(1, self.prepared.rounds + 1) if not self.is_closed(n)), self.prepared.rounds + 1)

    def is_complete(self) -> bool:
        """Whether the plan's run has ended."""
        return self.state.outcome(self.prepared.run) == "complete"

    def has_task(self, round_number: int, *, kind: str = "train") -> bool:
        """Whether a step has begun."""
        step = Step(run=self.prepared.run, round=round_number, kind=kind)  # type: ignore[arg-type]
        return self.state.task(step, now=now()) is not None

    def is_at_work(self, site: str, round_number: int) -> bool:
        """Whether a site has taken a training task and not answered it, as the site's own state says."""
        with suppress(sqlite3.Error), closing(_read_only(self.prepared.sites[site] / "state.db")) as database:
            words = "SELECT 1 FROM tasks WHERE run = ? AND kind = 'train' AND round = ? AND answer IS NULL"
            return database.execute(words, (self.prepared.run, round_number)).fetchone() is not None
        return False

    @contextmanager
    def held(self, site: str, round_number: int) -> Iterator[None]:
        """For the block a site's client app is stopped in the midst of a round's work: nothing comes of it."""
        home = self.prepared.sites[site]
        taken = f"{site} works on round {round_number}"
        self.until(taken, lambda: self.is_at_work(site, round_number), timeout_s=PATIENCE_S, pause_s=0.005)
        stopped = self.processes(having="not_fed.site.clientapp", of=home)
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            if not self.is_at_work(site, round_number):
                self.fail(f"{site} was too quick to be held in round {round_number}")
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def problems(self) -> str:
        """What the coordinator noted for its administrator, a line each."""
        return "\n".join(f"{one.code} {one.site or '-'} {one.text}" for one in self.state.problems(100))

    def aggregates(self, round_number: int, *, run: str | None = None) -> dict[str, str]:
        """Site -> digest of the round's aggregate as that site has it."""
        found = {}
        for site, home in self.prepared.sites.items():
            path = home / "organs" / (run or self.prepared.run) / f"aggregate-{round_number}.organ"
            if path.is_file():
                found[site] = files.sha256(path)
        return found

    # -- wait -----------------------------------------------------------------------------------------------------

    def until(
        self, what: str, condition: Callable[[], T | None], *, timeout_s: float = PATIENCE_S, pause_s: float = 0.05
    ) -> T:  # fmt: skip
        """The first value of `condition` that is true.

        Raises:
            Lost: it took longer; with the last lines of every log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(pause_s)
        self.fail(f"not within {timeout_s:.0f} s: {what}")
        raise AssertionError

    def until_closed(self, round_number: int, *, kind: str = "train", timeout_s: float = PATIENCE_S) -> None:
        """Until a step is over."""
        self.until(
            f"{kind} {round_number} is over", lambda: self.is_closed(round_number, kind=kind), timeout_s=timeout_s
        )

    def until_said(self, name: str, pattern: str, *, timeout_s: float = PATIENCE_S) -> str:
        """Until a running command has printed something; the line."""
        found = re.compile(pattern, re.MULTILINE)

        def line() -> str | None:
            match = found.search(self.commands[name].said())
            return match and match.group()

        return self.until(f"{name} says {pattern!r}", line, timeout_s=timeout_s)

    def fail(self, what: str) -> None:
        """Raise with all that is known."""
        raise Lost(f"{what}\n{self.tell()}")

    def tell(self) -> str:
        """The end of every log of this federation."""
        parts = [f"processes: {[(pid, command_line(pid)[:120]) for pid in self.processes()]}"]
        with suppress(Exception):
            parts.append(f"problems:\n{self.problems()}")
        for path in sorted([*self.folder.glob("*.said"), *self.folder.rglob("flower/*.log"), *self._site_logs()]):
            text = path.read_text(errors="replace")
            parts.append(f"--- {path.relative_to(self.folder)} ({len(text)} characters)\n{text[-LOG_TAIL:]}")
        return "\n".join(parts)

    def _site_logs(self) -> Iterator[Path]:
        return (path for home in self.prepared.sites.values() if (path := home / "log").is_file())


def deploy(prepared: Prepared, *, bank: Mapping[str, Any] | None = None, enrolled: bool = True) -> Deployed:
    """Give a simulation's homes what a deployment needs, by the functions behind `coordinator init` and `site init`.

    Args:
        bank: lines for that table of coordinator.toml.
        enrolled: whether the coordinator has taken the sites in.
    """
    port, moment, home = free_port(), now(), prepared.coordinator
    add_deployment(
        home, address=f"localhost:{port}", listen=f"127.0.0.1:{port}", base=str(prepared.base.folder), now=moment
    )  # fmt: skip
    if bank:
        _add_lines(home / DEPLOYMENT_FILE, after="[bank]", fields=bank)
    invite(home, out=home / "coordinator.invitation")
    proxies = {site: Proxy(port) for site in prepared.sites}
    for site, folder in prepared.sites.items():
        invitation = read_invitation(home / "coordinator.invitation")
        reached = invitation.model_copy(update={"address": f"localhost:{proxies[site].port}"})
        enrolment = add_connection(folder, reached, now=moment).enrolment
        policy = (folder / POLICY_FILE).read_text()
        (folder / POLICY_FILE).write_text(f'bundle_sha256 = ["{invitation.bundle_sha256}"]\n{policy}')
        if enrolled:
            line = enrolment.read_bytes()
            Nodes(home).enrol(line, federation=invitation.federation, coordinator=COORDINATOR, now=moment)
    return Deployed(prepared=prepared, port=port, proxies=proxies)


def _add_lines(path: Path, *, after: str, fields: Mapping[str, Any]) -> None:
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    path.write_text(path.read_text().replace(f"{after}\n", f"{after}\n{lines}", 1))


@dataclass(frozen=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def find_processes(folder: Path) -> list[int]:
    """Processes that carry this folder in environment or command line; never this one or its guard."""
    mark, found = str(folder).encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if not words or GUARD.encode() in words or int(entry.name) == os.getpid():
                continue
            if mark in words or mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)


def command_line(pid: int) -> str:
    """A process's words, or nothing when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def faketime_library() -> Path | None:
    """libfaketime, which shows a process another time; None where it is not installed (Debian: `faketime`)."""
    for place in FAKETIME_PLACES:
        for path in Path("/").glob(f"{place}/libfaketime*.1*"):
            if "MT" not in path.name:
                return path
    return None


def another_time(shift: str) -> dict[str, str]:
    """Environment of a process whose clock is off by `shift`, such as `+1d`."""
    library = faketime_library()
    assert library is not None, "libfaketime is missing: apt-get install faketime"
    return {"LD_PRELOAD": str(library), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)
