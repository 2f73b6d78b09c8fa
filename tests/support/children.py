"""Programs to supervise: each one is a few lines of Python, run for real."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from not_fed.processes.supervisor import Child

ORDERLY = """
import signal, sys, time
def end(*_):
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1] + "." + sys.argv[2], "w").write("")
while True:
    time.sleep(0.05)
"""
# deaf to SIGTERM, with a child of its own that is deaf too; both say who they are
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nwhile True: time.sleep(0.05)"])
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {grandchild.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    time.sleep(0.05)
"""  # noqa: E501


def child(folder: Path, name: str, code: str, *words: str, **more: object) -> Child:
    """A child that runs `code` with `words` as its arguments."""
    fields: dict[str, object] = {
        "name": name, "argv": [sys.executable, "-c", code, *words], "env": dict(os.environ),
        "log": folder / f"{name}.log", "cwd": folder,
    }  # fmt: skip
    return Child(**fields | more)  # type: ignore[arg-type]


def wait_for(what: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Until it is true; fails when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
