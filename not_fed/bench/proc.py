"""What other processes cost, as Linux tells it in /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields of /proc/PID/stat behind the name


def memory_mb(pid: int, field: str) -> float:
    """A process's VmRSS (now) or VmHWM (its peak), MiB; raises OSError or KeyError when it is gone or has none."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


def reset_peak(pid: int) -> None:
    """Let a process's VmHWM count from now on, where the kernel lets us."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, without its children; raises OSError when it is gone."""
    fields = _stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def programs(roots: Mapping[int, str]) -> dict[int, str]:
    """Process -> name, of some processes and all that they have started and that lives.

    A started one is named by its command: what stands last in the path of the first word that is a path of a program of
    its own, behind the interpreter.
    """
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int(_stat(int(entry.name))[_PARENT])
    found: dict[int, str] = {}
    for pid in parents:
        above = pid
        while above in parents and above not in roots:
            above = parents[above]
        if above in roots:
            found[pid] = roots[pid] if pid in roots else f"{_command(pid)} of {roots[above]}"
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        names = [Path(word).name for word in words if word]
        return next((name for name in names if not name.startswith(("python", "-"))), names[0] if names else "gone")
    return "gone"


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
