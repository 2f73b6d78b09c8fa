"""What the documents promise is there: tests named in docstrings and README, links, error codes that are unique."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import not_fed
from not_fed.errors import NotFedError

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "not_fed").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def promised() -> Iterator[tuple[str, str]]:
    for page in [*SOURCES, *PAGES]:
        for reference in re.findall(r"tests/[\w/]+\.py(?:::\w+)?", page.read_text()):
            yield str(page.relative_to(ROOT)), reference


def test_there_are_promises() -> None:
    assert len(list(promised())) > 20


@pytest.mark.parametrize(("page", "reference"), sorted(set(promised())))
def test_every_test_that_is_named_exists(page: str, reference: str) -> None:
    file, _, name = reference.partition("::")
    assert (ROOT / file).is_file(), f"{page} names {reference}"
    assert not name or name in names_in(ROOT / file), f"{page} names {reference}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def all_errors() -> list[type[NotFedError]]:
    for module in pkgutil.walk_packages(not_fed.__path__, "not_fed."):
        if not module.name.startswith("not_fed.bundle"):
            importlib.import_module(module.name)
    found, waiting = [], [NotFedError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("not_fed"):  # tests may have errors of their own
            found.append(kind)
        waiting.extend(kind.__subclasses__())
    return found


def test_every_error_has_a_code_of_its_own_an_exit_code_and_a_sentence() -> None:
    errors = all_errors()
    assert len(errors) > 30
    codes = [kind.code for kind in errors if "code" in vars(kind)]
    assert sorted(codes) == sorted(set(codes))
    for kind in errors[1:]:
        assert "code" in vars(kind), kind
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind.code), kind
        assert kind.exit_code in {2, 4, 5, 6, 7, 8}, kind
        assert kind.title().endswith("."), kind
