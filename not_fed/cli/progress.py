"""Bars with rate and time left on a terminal; a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from not_fed.progress import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

QUIET_S = 15.0
BRIEF_S = 5.0  # work that was over sooner needs no line of its own


@contextmanager
def shown() -> Iterator[Progress]:
    """A progress callable that draws on stderr while the block runs."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: object) -> None:
        self._bars, self._tasks = bars, {}

    _tasks: dict[str, TaskID]

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        bars = self._bars
        if what not in self._tasks:
            self._tasks[what] = bars.add_task(what, total=total, note="")  # type: ignore[attr-defined]
        elif bars.tasks[self._tasks[what]].completed > done:  # type: ignore[attr-defined]
            bars.reset(self._tasks[what], total=total)  # type: ignore[attr-defined]  # the same work again: one line for it
        bars.update(self._tasks[what], completed=done, total=total, note=note)  # type: ignore[attr-defined]


class _Lines:
    """For logs: a line every few seconds, and one for each longer piece of work that is over."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._said = time.monotonic()

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        started = self._started.setdefault(what, now)
        took = now - started
        if done >= total:
            self._started.pop(what)
            if took < BRIEF_S:
                return
        elif now - self._said < QUIET_S:
            return
        self._said = now
        left = f", {took / done * (total - done):.0f} s left" if 0 < done < total else f", {took:.1f} s"
        sys.stderr.write(f"{what}: {done:,} of {total:,}{left}{', ' + note if note else ''}\n")
        sys.stderr.flush()
