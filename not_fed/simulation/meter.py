"""CPU seconds of a whole federation in one process, told apart by what they were spent on.

A stage is a list of functions and methods, named where they are defined. While a `Meter` is entered, each of them tells
the clock of the process when it begins and ends; time in a stage within another belongs to the inner one, and time in
none to "carrying". The clock counts all threads, and nobody else works in the process meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

REST = "carrying"


class Meter:
    """Measures while it is entered; `seconds` has the sum of each stage afterwards.

    Proved by: tests/unit/test_bench_scale.py::test_time_within_a_stage_belongs_to_the_innermost_one
    """

    def __init__(self, stages: Mapping[str, Iterable[str]], *, clock: Callable[[], float] = time.process_time) -> None:
        """`stages`: name -> functions as `package.module:function`, `package.module:Class.method` or `...:Class.*`."""
        self._stages, self._clock = stages, clock
        self.seconds = dict.fromkeys([*stages, REST], 0.0)
        self._at = REST
        self._since = 0.0
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for stage, names in self._stages.items():
                for name in (one for some in names for one in _spelt_out(some)):
                    undo.enter_context(replaced(name, functools.partial(self._timed, stage)))
            self._undo = undo.pop_all()
        self._since = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._switch(REST)
        self._undo.close()

    def _switch(self, stage: str) -> str:
        """Book the time since the last switch; returns the stage that it belonged to."""
        now, before = self._clock(), self._at
        self.seconds[before] += now - self._since
        self._since, self._at = now, stage
        return before

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: object, **named: object) -> object:
            before = self._switch(stage)
            try:
                return function(*arguments, **named)
            finally:
                self._switch(before)

        return timed


@contextmanager
def replaced(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:  # noqa: ANN401  a context
    """Put `wrap(function)` in the place of a function, wherever not_fed has imported it by now, for the block.

    Args:
        name: `package.module:function` or `package.module:Class.method`.
    Raises:
        AttributeError, ModuleNotFoundError: there is no such function any more.
    """
    module_name, _, path = name.partition(":")
    owner: Any = importlib.import_module(module_name)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, last)
    found = [owner] if outer else _holders(last, original)
    changed = wrap(original)
    for place in found:
        setattr(place, last, changed)
    try:
        yield
    finally:
        for place in found:
            setattr(place, last, original)


def _spelt_out(name: str) -> list[str]:
    """`package.module:Class.*` as each public method that the class itself defines; any other name as it is."""
    if not name.endswith(".*"):
        return [name]
    module, _, path = name.removesuffix(".*").partition(":")
    methods = vars(getattr(importlib.import_module(module), path))
    return [f"{module}:{path}.{key}" for key, value in methods.items() if key[0] != "_" and inspect.isfunction(value)]


def _holders(name: str, function: object) -> list[Any]:
    return [module for module in list(sys.modules.values()) if getattr(module, "__dict__", {}).get(name) is function]
