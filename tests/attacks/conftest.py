"""One federation for all attacks, and a fresh sealed organ for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trust import Federation, Parcel


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Clinic, hub and lab."""
    return Federation.make(tmp_path_factory.mktemp("federation") / "roster")


@pytest.fixture
def parcel(tmp_path: Path, federation: Federation) -> Parcel:
    """From the clinic to hub and lab, round 3."""
    return Parcel(tmp_path, federation)
