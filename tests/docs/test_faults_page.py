"""docs/faults.md: every cell of its matrix names a test that exists and a code that exists; no fault was forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.test_promises import all_errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROW = re.compile(
    r"^\| (?P<phase>[^|]+) \| (?P<outcome>[^|]+) \| \[(?P<name>\w+)\]\(\.\./(?P<file>tests/[\w/]+\.py)\) \|$"
)
FAULTS = (
    "A site never answers", "A site answers late", "A site answers twice", "A site answers another round",
    "The line breaks in 100 MB", "A clock is off by a day", "A disk is full", "An old version",
    "An expired certificate", "A revoked key", "A changed bundle", "The coordinator is killed",
    "The SuperLink is killed", "The superexec is killed", "A site is killed", "The network is cut for a minute",
    "SQLite is locked", "Two coordinators with one federation id", "An unknown site", "A man in the middle",
)  # fmt: skip
# What stands in the coordinator's or a site's tables, and is no error of a command.
WORDS = {"late", "silent", "too-few", "sealed", "received", "refused", "bad-answer"}


class Cell(NamedTuple):
    """One row of the page."""

    fault: str
    phase: str
    outcome: str
    file: str
    name: str


def cells() -> list[Cell]:
    """Every row below a fault's heading; a row that cannot be read is an error."""
    found, fault = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            fault = line[3:]
        elif line.startswith("| ") and not line.startswith(("| phase ", "| --- ")):
            row = ROW.match(line)
            assert row is not None, f"cannot be read: {line}"
            found.append(Cell(fault, row["phase"], row["outcome"], row["file"], row["name"]))
    return found


def functions(file: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_the_matrix_has_forty_cells_and_every_fault() -> None:
    assert len(cells()) >= 40
    assert {cell.fault for cell in cells()} == set(FAULTS)
    assert len({(cell.fault, cell.phase) for cell in cells()}) == len(cells()), "a phase stands twice under a fault"


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell.fault}: {cell.phase}"[:80])
def test_every_cell_is_proved_by_a_test_that_runs(cell: Cell) -> None:
    found = functions(ROOT / cell.file)
    assert cell.name.startswith("test_")
    assert cell.name in found, cell
    marks = [ast.unparse(mark) for mark in found[cell.name].decorator_list]
    assert not any("skip" in mark or "xfail" in mark for mark in marks), cell


def test_every_code_on_the_page_is_one_that_exists() -> None:
    known = WORDS | {kind.code for kind in all_errors() if hasattr(kind, "code")}
    sources = "\n".join(path.read_text() for path in (ROOT / "not_fed").rglob("*.py"))
    for cell in cells():
        for code in re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)*)`", cell.outcome):
            assert code in known or f'"{code}"' in sources, (code, cell)
