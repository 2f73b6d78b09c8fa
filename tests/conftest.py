"""For every test: no ledger but its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands of this test keep their ledger; made when it is used."""
    folder = tmp_path_factory.mktemp("private") / "ledger"
    monkeypatch.setenv("NOT_FED_LEDGER", str(folder))
    return folder
