"""Programs that are kept running: started, watched, started again with growing pauses, stopped in order.

Call `poll` every fraction of a second, from the thread that called `start`: nothing here has a thread of its own. Each
child leads a session of its own, so that a ^C at the terminal reaches the supervisor alone, which then stops the
children in their order; and each dies with the supervisor, however that ends (see `leash`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from not_fed.errors import PeerError
from not_fed.processes import leash

MAX_LOG_BYTES = 8 << 20
LAST_LINES, LAST_BYTES = 3, 4096
STOP_GRACE_S, ORPHAN_GRACE_S, LEAST_GRACE_S, POLL_S = 10.0, 20.0, 3.0, 0.05
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ChildNotReady(PeerError):
    """A program that not-fed started did not become ready."""

    code = "child-not-ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long to wait before a dead child is started again: doubled each time, until one has lived long enough."""

    first_s: float = 1.0
    longest_s: float = 30.0
    healthy_after_s: float = 60.0

    def after(self, pause_s: float, *, lived_s: float) -> float:
        """The next pause, after a child that lived `lived_s` and had been given `pause_s` before."""
        if lived_s >= self.healthy_after_s or pause_s == 0:
            return self.first_s
        return min(2 * pause_s, self.longest_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One program to keep running.

    Attributes:
        env: its whole environment.
        log: where its output goes, appended, mode 0600; kept below twice MAX_LOG_BYTES, the older half in `LOG.1`.
        ready: asked until it says yes, or the time is over; without it, a child is ready when it has been started.
        stop_s: how long it may take to end after a signal before it is killed.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 60.0
    stop_s: float = STOP_GRACE_S


@dataclass(slots=True)
class _Place:
    """Where a child is in its life."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    is_ready: bool = False
    is_wanted: bool = False
    pause_s: float = 0.0
    again_at: float = 0.0
    restarts: int = 0
    group: int | None = None  # of the child that runs, or of the last one while something of it may be left


@dataclass(slots=True)
class _Watch:
    """The process that ends what is left when this one dies; it knows each child by its process group."""

    grace_s: float
    process: subprocess.Popen[bytes] | None = None
    groups: set[int] = field(default_factory=set)

    def add(self, group: int) -> None:
        self.groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self.groups.discard(group)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()  # closes its input, and waits
            self.process = None

    def _tell(self, line: str) -> None:
        if self.process is None or self.process.poll() is not None:  # none yet, or somebody killed it
            self.close()
            self.process = _bare_python("watch", str(self.grace_s), stdin=subprocess.PIPE)
            line = "".join(f"+{group}\n" for group in sorted(self.groups))
        pipe = self.process.stdin
        if pipe is not None:
            with suppress(BrokenPipeError):
                os.write(pipe.fileno(), line.encode())


class Supervisor:
    """Keeps children running until it is told to stop them.

    Guarantees:
        Nothing that it started outlives it by more than `orphan_grace_s`, not even after SIGKILL.
    Proved by: tests/unit/test_processes.py::test_no_process_outlives_a_supervisor_that_is_killed
    """

    def __init__(
        self, children: Sequence[Child], *, say: Callable[[str], None],
        on_exit: Callable[[str, int], None] | None = None, back_off: BackOff | None = None,
        orphan_grace_s: float = ORPHAN_GRACE_S,
    ) -> None:  # fmt: skip
        """Nothing is started yet.

        Args:
            children: in the order in which they are to be started; they are stopped in the reverse order.
            say: takes one line for a person.
            on_exit: told the name and the exit status (negative: a signal) of a child that ended without being stopped.
            orphan_grace_s: how long children may take to end in order once this process is gone, however it went.
        """
        self._places = {child.name: _Place(child) for child in children}
        self._say, self._on_exit, self._back_off = say, on_exit, back_off or BackOff()
        self._watch = _Watch(orphan_grace_s)
        self._adopts = leash.adopt_orphans()

    def start(self, name: str) -> None:
        """Start a child and wait until it is ready.

        The thread that calls this, or `poll`, must live as long as the supervisor: the kernel ends a child with the
        thread that started it.

        Raises:
            ChildNotReady: it ended first, or took too long, in which case it is stopped; its last lines are told.
            OSError: it cannot be run at all.
        """
        place = self._places[name]
        place.is_wanted = True
        self._spawn(place)
        while not self._look(place):
            code = _poll(place)
            if code is not None or self._is_late(place):
                self.stop(name)
                raise _not_ready(place.child, "its end" if code is not None else "no sign of it")
            time.sleep(POLL_S)

    def poll(self) -> None:
        """Start again what has died, when its pause is over; never raises for a child.

        A child that is not ready in time is ended, which makes it one that has died; only that takes a while.
        """
        for place in self._places.values():
            if not place.is_wanted:
                continue
            if place.process is None:
                if time.monotonic() >= place.again_at:
                    self._start_again(place)
            elif (code := _poll(place)) is not None:
                self._has_died(place, code)
            else:
                _cap_log(place.child.log)
                if not self._look(place) and self._is_late(place):
                    self._say(f"{place.child.name} is not ready after {place.child.ready_timeout_s:.0f} s; ended")
                    self._has_died(place, self._end(place, signal.SIGTERM) or 0)

    def stop(self, name: str, sig: int = signal.SIGTERM) -> int | None:
        """End a child, with its own children, and do not start it again; returns its exit status, None if none ran."""
        place = self._places[name]
        place.is_wanted = False
        code = self._end(place, sig)
        self._clear(place, grace_s=LEAST_GRACE_S)
        place.process = None
        return code

    def stop_all(self) -> None:
        """End all children, the last one started first."""
        for name in reversed(self._places):
            self.stop(name)
        self._watch.close()

    def pids(self) -> dict[str, int]:
        """Name -> process id of each child that runs now."""
        return {
            name: place.process.pid
            for name, place in self._places.items()
            if place.process is not None and place.process.poll() is None
        }

    def restarts(self, name: str) -> int:
        """How often a child has been started again."""
        return self._places[name].restarts

    def is_ready(self, name: str) -> bool:
        """Whether the child that runs now has been ready."""
        place = self._places[name]
        return place.process is not None and place.process.poll() is None and place.is_ready

    def _spawn(self, place: _Place) -> None:
        child = place.child
        place.is_ready, place.started_at = False, time.monotonic()
        log = _open_log(child.log)
        try:
            place.process = _bare_python(
                "start", str(os.getpid()), *child.argv, stdout=log, env=dict(child.env), cwd=child.cwd
            )
        finally:
            os.close(log)
        place.group = place.process.pid
        self._watch.add(place.group)

    def _start_again(self, place: _Place) -> None:
        place.restarts += 1
        self._clear(place, grace_s=0.0)  # they had the pause to end by themselves
        try:
            self._spawn(place)
        except OSError as error:
            self._say(f"{place.child.name} cannot be started: {os.strerror(error.errno or 0).lower()}")
            self._has_died(place, 127)
        else:
            self._say(f"{place.child.name} was started again")

    def _has_died(self, place: _Place, code: int) -> None:
        place.process = None
        place.pause_s = self._back_off.after(place.pause_s, lived_s=time.monotonic() - place.started_at)
        place.again_at = time.monotonic() + place.pause_s
        self._say(f"{place.child.name} has ended {_how(code)}; started again in {place.pause_s:.0f} s")
        if self._on_exit is not None:
            self._on_exit(place.child.name, code)

    def _look(self, place: _Place) -> bool:
        if not place.is_ready:
            place.is_ready = _poll(place) is None and (place.child.ready is None or place.child.ready())
        return place.is_ready

    def _is_late(self, place: _Place) -> bool:
        return time.monotonic() - place.started_at > place.child.ready_timeout_s

    def _end(self, place: _Place, sig: int) -> int | None:
        process = place.process
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.send_signal(sig)  # to the child alone: it ends its own children in their order
        deadline = time.monotonic() + place.child.stop_s
        try:
            process.wait(place.child.stop_s)
        except subprocess.TimeoutExpired:
            self._say(f"{place.child.name} did not end within {place.child.stop_s:.0f} s; killed")
            process.kill()
        code = process.wait()
        self._clear(place, grace_s=max(LEAST_GRACE_S, deadline - time.monotonic()))
        return code

    def _clear(self, place: _Place, *, grace_s: float) -> None:
        """Wait for what a dead child has left, which ends by itself when it notices; kill it when the time is over."""
        if place.group is None:
            return
        deadline = time.monotonic() + grace_s
        while (lives := self._lives(place.group)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if lives:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(place.group, signal.SIGKILL)
            deadline = time.monotonic() + LEAST_GRACE_S
            while self._lives(place.group) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self._watch.remove(place.group)
        place.group = None

    def _lives(self, group: int) -> bool:
        """Whether something of a dead child's group runs; what was left to us is buried."""
        try:
            if not self._adopts:
                os.killpg(group, 0)
                return True
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
        except (ChildProcessError, ProcessLookupError):
            return False
        return True


def _bare_python(
    *words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None, cwd: Path | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """One of the two programs of `leash`, in a session of its own."""
    return subprocess.Popen(  # noqa: S603  our own program, no shell
        [sys.executable, "-I", "-S", leash.__file__, *words], stdin=stdin, stdout=stdout,
        stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True, umask=0o077,
    )  # fmt: skip


def _poll(place: _Place) -> int | None:
    return None if place.process is None else place.process.poll()


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _cap_log(path: Path) -> None:
    """Move what was written so far to `LOG.1` once it is too much; the child goes on appending to the same file."""
    with suppress(OSError):
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
        old = path.with_name(f"{path.name}.1")
        with os.fdopen(_open_log(old), "wb") as copy, path.open("rb") as log:
            copy.truncate(0)
            shutil.copyfileobj(log, copy)
        os.truncate(path, 0)


def _not_ready(child: Child, got: str) -> ChildNotReady:
    lines = _last_lines(child.log)
    return ChildNotReady(
        where=child.name, expected=f"it to be ready within {child.ready_timeout_s:.0f} s",
        got=f"{got}; its last words: {' / '.join(lines)}" if lines else got, hint=f"see {child.log}",
    )  # fmt: skip


def _last_lines(log: Path) -> list[str]:
    """What a child said last, without what a terminal would obey."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            text = file.read(LAST_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = [_plain(line) for line in text.splitlines()]
    return [line for line in lines if line][-LAST_LINES:]


def _plain(line: str) -> str:
    return "".join(character for character in _COLOUR.sub("", line) if character.isprintable()).strip()


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
