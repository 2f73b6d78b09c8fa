"""One process of another age implementation for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.typage import Typage, start


@pytest.fixture(scope="session")
def typage() -> Iterator[Typage]:
    """It runs until the last test is done."""
    with start() as process:
        yield Typage(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0
