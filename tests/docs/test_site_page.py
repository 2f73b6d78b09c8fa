"""docs/site.md against the code: its policy is one, and its codes exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from not_fed.privacy.ledger.check import LedgerRolledBack
from not_fed.privacy.ledger.ledger import LedgerMissing
from not_fed.privacy.ledger.scope import BudgetSpent
from not_fed.site.policy import PrivacyPolicy, load_policy

PAGE = (Path(__file__).parents[2] / "docs" / "site.md").read_text()


def test_the_policy_on_the_page_is_one_and_shows_every_setting_of_privacy(tmp_path: Path) -> None:
    text = PAGE.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "site.toml").write_text(text)
    own = load_policy(tmp_path).privacy
    assert own is not None
    assert own.model_fields_set == set(PrivacyPolicy.model_fields)
    assert own.releases == {"mean_loss": 10.0}


@pytest.mark.parametrize("error", [BudgetSpent, LedgerRolledBack, LedgerMissing])
def test_the_codes_on_the_page_are_the_codes(error: type[Exception]) -> None:
    codes = set(re.findall(r"\| `([a-z-]+)` \|", PAGE))
    assert error.code in codes  # type: ignore[attr-defined]
