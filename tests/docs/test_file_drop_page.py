"""docs/file-drop.md: what it says is typed, is typed; the codes that it names exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from not_fed.coordinator.drop import AnswerOutdated
from not_fed.coordinator.rounds import TooFewAnswers
from not_fed.coordinator.state import RunLocked
from not_fed.envelope.waiting import COME_BACK
from not_fed.site.drop import OrderOutdated
from not_fed.site.policy import TooManyRounds
from not_fed.transfer.stick import StickAltered, StickEmpty, StickIncomplete
from tests.support.federation import tiny_prepared
from tests.support.typed import Desk

PAGE = (Path(__file__).parents[2] / "docs" / "file-drop.md").read_text()


def test_the_page_can_be_typed(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, sites=["cardiology", "neurology"], rounds=1)
    desk = Desk(tmp_path)
    shutil.copytree(prepared.coordinator, desk.machine("hub") / "home")
    for site, home in prepared.sites.items():
        shutil.copytree(home, desk.machine(site) / "home")
    desk.type_page(PAGE)


ERRORS = [
    StickEmpty, StickIncomplete, StickAltered, OrderOutdated, AnswerOutdated, TooManyRounds, RunLocked, TooFewAnswers,
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_the_codes_on_the_page_are_the_codes(error: type[Exception]) -> None:
    assert f"`{error.code}`" in PAGE  # type: ignore[attr-defined]
    named = set(re.findall(r"`((?:stick|order|answer|run)-[a-z-]+)`", PAGE))
    assert named <= {each.code for each in ERRORS}  # type: ignore[attr-defined]
    assert {"approval-awaited", "outside-hours"} <= COME_BACK
