"""docs/secure-sum.md against the code: its settings, what follows from them, its papers, its errors and its proofs."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed.aggregation.secure import Ring, capsules
from not_fed.aggregation.secure import ledger as ledger_module
from not_fed.aggregation.secure import ring as ring_module
from not_fed.aggregation.secure import server as server_module
from not_fed.aggregation.secure import site as site_module
from not_fed.coordinator import rounds as rounds_module
from not_fed.coordinator import summing as coordinator_module
from not_fed.coordinator.plan import SecureSumTable
from not_fed.envelope import summing as papers_module
from not_fed.envelope.dsse import Statement
from not_fed.envelope.summing import Contribution, KeyRef, Partial, RoundKey, Shares, SumCall, Upload
from not_fed.envelope.task import Task, TotalRef
from not_fed.errors import NotFedError
from not_fed.site import summing as site_summing_module
from not_fed.site import verdicts as verdicts_module
from not_fed.trust.plans import SumPlan, UnsafePlan
from tests.docs.test_promises import all_errors
from tests.unit.test_secure_strategy import STRATEGIES
from tests.unit.test_secure_sum_losses import PATTERNS, SUMS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "secure-sum.md").read_text()
CODES = {error.code for error in all_errors()}
NO_CODES = {"secure-sum", "not-fed", "cannot-read-sum"}
MODULES = (
    ledger_module, ring_module, server_module, site_module, papers_module, coordinator_module, site_summing_module,
    verdicts_module,
)  # fmt: skip
FILES = {
    name: f"tests/attacks/test_secure_sum_{name}.py" for name in ("server", "site", "helper", "blind", "host")
} | {"votes": "tests/attacks/test_votes.py"}  # fmt: skip


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


# -- papers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", [RoundKey, SumCall, Upload, Partial, Shares, TotalRef])
def test_the_fields_of_each_paper_are_those_of_the_code(paper: type[Statement]) -> None:
    rows = re.split(rf"^\| field of `{paper.__name__}` \| \|$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    lines = re.match(r"\n((?:\|.*\n)+)", rows)
    assert lines is not None
    said = [name for line in lines[1].splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(said) == sorted(field.alias or name for name, field in paper.model_fields.items())


def test_what_is_inside_of_papers_is_named_too() -> None:
    for inner, outer in ((Contribution, "Upload"), (KeyRef, "SumCall")):
        part = PAGE.split(f"| field of `{outer}` |")[1].split("\n\n")[0]
        for name in inner.model_fields:
            assert f"`{name}`" in part, name


def test_what_a_task_adds_is_what_it_has() -> None:
    named = re.search(r"The task says besides: (.+?)\.\n", PAGE, re.DOTALL)
    assert named is not None
    fields = set(re.findall(r"`(\w+)`", named[1]))
    assert fields == {"sites", "coordinator", "rounds", "base_sha256", "spans", "quorum"} <= set(Task.model_fields)
    assert {"call", "active_sha256", "missing", "total"} <= set(Task.model_fields)


def test_a_capsule_is_as_large_as_the_page_says() -> None:
    from not_fed.age import HybridIdentity, hpke

    held = capsules.Capsule(seed=bytes(32), blind=bytes(32), shares=(bytes(32),) * 3)
    sealed = capsules.seal(
        held, public=HybridIdentity(hpke.new_seed()).public, call_sha256="ab" * 32, uploader="a", to="b"
    )
    assert "1,136 bytes and 32 for each of these" in " ".join(PAGE.split())
    assert len(sealed) == 1136 + 32 * 5


# -- errors ------------------------------------------------------------------------------------------------------------


def noted() -> set[str]:
    """Codes that a coordinator notes without an error of its own."""
    source = Path(str(rounds_module.__file__)).read_text()
    return set(re.findall(r'_problem\(\s*"([a-z-]+)"', source))


def test_every_code_on_the_page_exists() -> None:
    said = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", PAGE)) - NO_CODES
    assert len(said) > 30
    assert said <= CODES | noted()


def test_every_error_of_the_secure_sum_is_in_the_table_of_failures() -> None:
    own = {
        kind.code
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, NotFedError) and kind.__module__ == module.__name__
    }
    rows = table("When it fails")
    said = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row[0])}
    assert len(own) > 15
    assert own <= said
    assert all(all(row[:3]) for row in rows)


# -- proofs ------------------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_by_its_file_exists() -> None:
    named = re.findall(r"(?<![\w./])(\w+)::(test_\w+)", PAGE)
    assert len(named) > 60
    for file, name in named:
        assert name in functions(FILES[file]), f"{file}::{name}"


def functions(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}


def test_each_lie_has_an_outcome_and_a_proof() -> None:
    head = r"^\| (?:S|a helper|a site|who) lies? \| and gets \| proof \|\n\|.*\n"
    tables = re.findall(head + r"((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [line.split("|")[1:-1] for rows in tables for line in rows.splitlines()]
    assert len(tables) == 8
    for row in rows:
        assert row[0].strip()
        assert row[1].strip()
        assert "::test_" in row[2] or "not seen" in row[1]


def test_what_was_searched_and_tried_are_the_numbers_of_the_tests() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| one call under the rule"))
    said = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", row.split("|")[2])]
    assert sorted(said) == sorted(STRATEGIES.values())
    assert f"{PATTERNS:,} patterns, {SUMS:,} sums" in PAGE


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_mean_is_within_half_a_step_as_the_page_says() -> None:
    rule = plan(4, collude=1, vanish=0)
    ring = Ring.of(rule)
    assert "with 24 bits and the default clip, 3.7e-9" in PAGE
    assert f"{ring.step / 2:.1e}" == "3.7e-09"
    source = np.random.Generator(np.random.PCG64(7))
    changes = source.uniform(-rule.clip, rule.clip, (4, 2000)).astype(np.float32)
    total = np.sum([ring.words(ring.round(change), weight=1) for change in changes], axis=0, dtype=ring.dtype)
    away = np.abs(ring.mean(total, weight=4) - changes.astype(np.float64).mean(axis=0))
    assert ring.step / 20 < away.max() <= ring.step / 2 * (1 + 1e-6)


def test_the_page_says_at_its_top_that_nobody_else_has_reviewed_it() -> None:
    top = PAGE.split("## What it gives")[0]
    assert "No outside review yet" in top
    assert "no epsilon is claimed for it" in top
