"""What every benchmark shares: the machine it ran on, times with their spread, peak memory."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("not-fed", "torch", "transformers", "peft", "opacus", "numpy")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of repeated work."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Summarise some repeats."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))

    def __str__(self) -> str:
        return f"{self.median:.2f} s ({self.low:.2f} to {self.high:.2f})"


def interleaved(
    work: Mapping[str, Callable[[], object]], *, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Times]:
    """Time several pieces of work in turns, so that a slow minute of the machine hits all of them; one warm-up each.

    Args:
        clock: what counts as time; `time.process_time` for CPU seconds of all threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, run in work.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return {name: Times.of(measured) for name, measured in seconds.items()}


def sweep(score: Callable[[float], float], rates: Sequence[float], *, most: int) -> float:
    """The rate with the lowest score; while that is an end of the range, the next one beyond it is tried too.

    >>> sweep(lambda lr: abs(lr - 8), [1.0, 2.0], most=6)
    8.0
    """
    found = {rate: ranked(score(rate)) for rate in sorted(rates)}
    while len(found) < most:
        tried = sorted(found)
        best = min(tried, key=lambda rate: found[rate])
        if best not in (tried[0], tried[-1]):
            break
        inner = tried[1] if best == tried[0] else tried[-2]
        following = float(f"{best * best / inner:.3g}")
        found[following] = ranked(score(following))
    return min(found, key=lambda rate: found[rate])


def ranked(score: float) -> float:
    """For choosing the lowest: a run that ended in NaN, which compares with nothing, comes last."""
    return math.inf if math.isnan(score) else score


def matmul_gflops(size: int = 1024, repeats: int = 20) -> float:
    """The machine's own float32 matrix rate, measured now."""
    import torch

    left = torch.ones(size, size)
    left @ left
    started = time.perf_counter()
    for _ in range(repeats):
        left @ left
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e9


def peak_memory_mb() -> float | None:
    """This process's largest resident size so far, MiB; None where /proc does not tell."""
    return _memory_mb("VmHWM")


def resting_memory_mb() -> float | None:
    """This process's resident size now, MiB; None where /proc does not tell."""
    return _memory_mb("VmRSS")


def _memory_mb(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from now on, where the kernel can (Linux, proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def machine(libraries: Sequence[str] = LIBRARIES) -> dict[str, object]:
    """Where and with what a result was measured."""
    facts: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "cpu": cpu_name()}
    if "torch" in libraries:
        import torch

        facts["threads"] = torch.get_num_threads()
    return facts | {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
    }


def cpu_name() -> str:
    """What the operating system calls this processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
