"""docs/voting.md: its settings are settings, its words are all that can leave, and its table is computed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from not_fed.coordinator.plan import FederationPlan
from not_fed.envelope.verdict import VerdictFalse, VoteSuppressed
from not_fed.envelope.vote import Reason
from not_fed.privacy.ledger.cap import Cap
from not_fed.privacy.mechanisms import pld_epsilon
from not_fed.privacy.renyi import renyi_divergence
from not_fed.settings import check
from not_fed.site.policy import SitePolicy, VotePolicy
from not_fed.site.votebook import VoteTaken

PAGE = (Path(__file__).parents[2] / "docs" / "voting.md").read_text()
FIRST, SECOND = (tomllib.loads(block) for block in re.findall(r"```toml\n(.+?)```", PAGE, re.DOTALL))


def test_the_settings_on_the_page_are_settings_and_all_of_a_vote() -> None:
    own = check(VotePolicy, FIRST.pop("vote"), where="the page")
    assert own.model_fields_set == set(VotePolicy.model_fields)
    assert set(FIRST) == {"held_out"} <= set(SitePolicy.model_fields)
    assert set(SECOND) == {"quorum"} <= set(FederationPlan.model_fields)


def test_the_page_names_every_word_that_can_leave_and_every_refusal() -> None:
    assert set(get_args(Reason)) <= set(re.findall(r"`([a-z-]+)`", PAGE))
    for error in (VerdictFalse, VoteSuppressed, VoteTaken):
        assert f"`{error.code}`" in PAGE


@pytest.mark.parametrize("noise", [5, 10, 20, 40])
def test_the_prices_on_the_page_are_computed(noise: int) -> None:
    row = re.search(rf"^\| {noise} \|(.+)\|$", PAGE, re.MULTILINE)
    assert row is not None
    said = [float(cell.replace(",", "")) for cell in row[1].split("|")]
    for rounds, shown in zip((1, 5, 20), said[:3], strict=True):
        epsilon = pld_epsilon(((1.0, float(noise), rounds),), delta=1e-5)
        assert epsilon <= shown < epsilon + 0.01
    for budget, most in zip((1.0, 3.0, 8.0), said[3:], strict=True):
        cap = Cap.new(epsilon=budget, delta=1e-5)
        for rounds, fits in ((int(most), True), (int(most) + 1, False)):
            assert (renyi_divergence(((1.0, float(noise), rounds),), order=cap.order) <= cap.bound) is fits
