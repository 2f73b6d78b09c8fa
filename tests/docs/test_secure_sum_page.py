"""docs/secure-sum.md against the code: its settings, and what follows from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from not_fed.coordinator.plan import SecureSumTable
from not_fed.trust.plans import SumPlan, UnsafePlan

PAGE = (Path(__file__).parents[2] / "docs" / "secure-sum.md").read_text()


def table(title: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its own."""
    text = re.split(rf"^#+ {title}$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[0].splitlines()[2:]]


def plan(sites: int, **changes: Any) -> SumPlan:  # noqa: ANN401
    return SumPlan(
        federation="lowlands", run="spring", coordinator="hub", sites=tuple(f"site-{i:03d}" for i in range(sites)),
        rounds=1, base_sha256="ab" * 32, spans=((4, 8),), **changes,
    )  # fmt: skip


ROWS = [tuple(int(cell) for cell in row) for row in table("Useful settings")]


def test_useful_settings_are_there_for_small_and_large_federations() -> None:
    assert {row[0] for row in ROWS} == {3, 4, 5, 8, 16, 50}
    assert len(ROWS) == len(set(ROWS))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_row_is_what_the_code_computes(row: tuple[int, ...]) -> None:
    sites, collude, vanish, shares, helpers, least, missing, others, weight = row
    rule = plan(sites, collude=collude, vanish=vanish, max_weight=weight).thresholds()
    assert (rule.shares, rule.helpers, rule.min_sites) == (shares, helpers, least)
    assert (missing, others) == (sites - least, least - collude)
    with pytest.raises(UnsafePlan):
        plan(sites, collude=collude, vanish=vanish, max_weight=weight + 1).thresholds()


def test_every_setting_is_explained_with_its_default() -> None:
    said = {name: row[3] for row in table("The plan") for name in re.findall(r"`(\w+)`", row[0])}
    assert set(SecureSumTable.model_fields) | {"sites"} == set(said)
    fields = SecureSumTable.model_fields
    for name in ("collude", "vanish", "max_weight", "quorum"):
        assert said[name] == str(fields[name].default), name
    numbers = ", ".join(str(fields[name].default) for name in ("word_bits", "value_bits", "clip"))
    assert said["clip"] == numbers
    assert (said["blind"], fields["blind"].default) == ("no", False)
    assert (said["min_sites"].startswith("max(3, t)"), fields["min_sites"].default) == (True, None)


def test_the_settings_that_the_page_calls_impossible_are() -> None:
    with pytest.raises(UnsafePlan):
        plan(3, collude=1, vanish=1).thresholds()
    with pytest.raises(UnsafePlan):
        plan(4, collude=1, vanish=1).thresholds(3)
    for collude, vanish in ((1, 0), (0, 1)):
        assert plan(3, collude=collude, vanish=vanish).thresholds().helpers == 2
    assert plan(4, collude=1, vanish=1).thresholds().helpers == 3
