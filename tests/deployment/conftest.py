"""Federations of real processes for the tests here: each file starts one and shares it; a failure shows every log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployed import Deployed, deploy
from tests.support.federation import tiny_prepared

Start = Callable[..., Deployed]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Make a tiny federation with a deployment's papers, nothing running yet; all of it ends with the module.

    Args: as `tiny_prepared`; `bank` is written into coordinator.toml's table of that name.
    """
    made: list[Deployed] = []

    def make(*, bank: dict[str, Any] | None = None, **options: Any) -> Deployed:  # noqa: ANN401
        folder: Path = tmp_path_factory.mktemp("fed")
        made.append(deploy(tiny_prepared(folder, **{"log": True, **options}), bank=bank))
        return made[-1]

    yield make
    for federation in made:
        federation.close()
