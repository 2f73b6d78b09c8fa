"""Which of the breaks on purpose run with every change: every third; `make breaks` runs them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def in_turn(names: Iterable[str]) -> list[Any]:
    """The names as parameters; all but every third bear the marker `breaks`."""
    return [
        name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.breaks) for number, name in enumerate(names)
    ]
