"""The attack suite reads like a threat model: every attack says its powers and its control, and none is forgotten."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_tool() -> ModuleType:
    """tools/attacks.py, which is no package."""
    spec = importlib.util.spec_from_file_location("attacks_tool", ROOT / "tools" / "attacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()
FILES = sorted((ROOT / "tests" / "attacks").glob("test_*.py"))
TESTS = [(file, node) for file in FILES for node in TOOL.tests_in(file)]


def test_there_are_attacks() -> None:
    assert len(FILES) > 10
    assert len(TESTS) > 150


@pytest.mark.parametrize(("file", "node"), TESTS, ids=[f"{file.stem}::{node.name}" for file, node in TESTS])
def test_every_attack_says_what_is_tried_with_which_powers_and_how_the_door_opens(
    file: Path, node: ast.FunctionDef
) -> None:
    attack = TOOL.parse(node, file)
    assert attack is not None, f"{file.name}::{node.name}: A17. What is tried. Powers: … Control: …"
    assert set(attack.numbers) <= set(TOOL.KNOWN)
    assert set(attack.sums) <= set(TOOL.KNOWN_SUMS)
    assert attack.chapter != "Elsewhere", f"tools/attacks.py has no chapter for {file.name}"


def test_every_attack_of_the_list_is_tried() -> None:
    covered = {number for attack in TOOL.collect() for number in attack.numbers}
    assert set(TOOL.KNOWN) - covered == set(), "attacks of the list that no test names"
    summed = {number for attack in TOOL.collect() for number in attack.sums}
    assert set(TOOL.KNOWN_SUMS) - summed == set(), "attacks on the secure sum that no test names"


def test_there_are_many_more_of_our_own() -> None:
    own = {(attack.file, attack.name) for attack in TOOL.collect() if not attack.numbers}
    assert len(own) >= 60
    sentences = [attack.attack for attack in TOOL.collect()]
    assert len(sentences) == len(set(sentences)), "two tests claim to try the same"


def test_every_attack_tries_something() -> None:
    """Each test refuses something (raises, a helper that does, an exit code) and asserts or opens something."""
    for file, node in TESTS:
        text, words = ast.unparse(node), ("assert", "raises", "refused", "not_taken", ".opens(")
        assert any(word in text for word in words), f"{file.name}::{node.name}"


def test_the_page_is_what_the_tests_say() -> None:
    assert TOOL.PAGE.read_text(encoding="utf-8") == TOOL.page(TOOL.collect()), "run: python tools/attacks.py"


@pytest.mark.parametrize(
    "docstring",
    [
        "", "What is tried. Powers: all. Control: opens.", "A17. What is tried.", "A17. What is tried. Powers: all.",
        "A17. What is tried. Control: opens. Powers: all.", "A17 What is tried. Powers: all. Control: opens.",
        "A17,A18. Tried. Powers: all. Control: opens.", "A1, S1. Tried. Powers: all. Control: opens.",
        "A190. Tried. Powers: all. Control: opens.",
        "own. Tried. Powers: all. Control: opens.", "A17. Powers: all. Control: opens.",
    ],
)  # fmt: skip
def test_a_docstring_without_the_grammar_is_noticed(docstring: str) -> None:
    node = ast.parse(f"def test_x():\n    {docstring!r}\n").body[0]
    assert isinstance(node, ast.FunctionDef)
    assert TOOL.parse(node, ROOT / "tests" / "attacks" / "test_x.py") is None


def test_the_grammar_is_read_across_lines() -> None:
    text = '"""A17, A18. What\n    is tried.\n\n    Powers: all of\n    them. Control: it opens.\n    """'
    node = ast.parse(f"def test_x():\n    {text}\n").body[0]
    assert isinstance(node, ast.FunctionDef)
    attack = TOOL.parse(node, ROOT / "tests" / "attacks" / "test_keys_x.py")
    assert attack is not None
    assert (attack.numbers, attack.attack, attack.powers, attack.control) == (
        (17, 18), "What is tried", "all of them", "it opens",
    )  # fmt: skip
    assert attack.chapter == "Signatures, passport, waybill, label"
