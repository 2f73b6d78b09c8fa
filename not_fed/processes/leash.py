"""So that no child outlives its supervisor: two small programs, run as scripts by a bare Python.

    leash.py start PARENT ARGV...   asks the kernel for SIGTERM when the supervisor dies, then becomes ARGV
    leash.py watch GRACE_S          reads `+GROUP` and `-GROUP` lines; when the supervisor's end of the pipe closes, for
                                    whatever reason, waits for the grace and ends what is left with SIGKILL

The first costs nothing once it is ARGV, and works where the kernel can (Linux, prctl(2) PR_SET_PDEATHSIG; it fires when
the *thread* dies that started the child). The second catches what the first can't: grandchildren, and a child that
does not listen to SIGTERM. Standard library only: it has to start within milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SIGNALS_LEADERS = sys.platform == "linux"
_POLL_S = 0.05


def die_with_parent(parent: int, *, number: int = signal.SIGTERM) -> None:
    """Let the kernel send `number` to this process when its parent's thread dies; at once when it is dead already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), number)


def adopt_orphans() -> bool:
    """Become the parent of grandchildren whose own parent dies, so that they can be waited for; whether that works."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def watch(lines: Iterable[str], *, grace_s: float) -> None:
    """Remember which groups live; end them when there are no more lines.

    Where the kernel has sent the leaders SIGTERM, a second one would cut short how they end in order.
    """
    groups: set[int] = set()
    for line in lines:
        group = int(line[1:])
        (groups.add if line[0] == "+" else groups.discard)(group)
    if not _SIGNALS_LEADERS:
        _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while groups and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        groups = {group for group in groups if _lives(group)}
    _signal(groups, signal.SIGKILL)


def _signal(groups: Iterable[int], number: int) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _prctl(option: int, value: int) -> bool:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl is not None and prctl(option, value, 0, 0, 0) == 0


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(words: list[str]) -> None:
    """The two programs."""
    if words[0] == "start":
        die_with_parent(int(words[1]))
        os.execvp(words[2], words[2:])  # noqa: S606  no shell
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its supervisor does, and not before
    watch(sys.stdin, grace_s=float(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
