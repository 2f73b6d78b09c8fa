"""Write docs/attacks.md from the attack tests themselves: `python tools/attacks.py`.

An attack test says in its docstring what is tried, with which powers, and how the door opens honestly:

    A17, A18. What is tried. Powers: what the attacker has. Control: how the door does open honestly.

The numbers are those of the list of attacks that the format was designed against (A1 to A89), or of the list that the
secure sum was (S1 to S79); `Own.` stands for one beyond both.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "attacks.md"
KNOWN, KNOWN_SUMS = range(1, 90), range(1, 80)
GRAMMAR = re.compile(
    r"(?P<numbers>A\d{1,2}(?:, A\d{1,2})*|S\d{1,2}(?:, S\d{1,2})*|Own)\. (?P<attack>.+?[.?!:]) "
    r"Powers: (?P<powers>.+?[.?!]) Control(?P<control>[:,] .+)"
)
CHAPTERS: dict[str, range] = {
    "The container": range(1, 16), "Signatures, passport, waybill, label": range(16, 39),
    "The organ inside": range(39, 50), "The roster": range(50, 61), "Log and recall": range(61, 69),
    "Keys": range(69, 75), "Files and folders": range(75, 83), "The command": range(83, 90),
}  # fmt: skip
SUBJECTS = {  # attacks beyond the list: by the file that they are in
    "The container": "container recipients frame memory published typescript parsers",
    "Signatures, passport, waybill, label": (
        "signatures signed_json passport waybill label sealing import_policy replay"
    ),
    "The organ inside": "tensor_header organ_payload", "The roster": "roster ceremony draft members stewards",
    "Log and recall": "log logged recall", "Keys": "keys", "Files and folders": "inputs filesystem disk known_digest",
    "The command": "command terminal", "The privacy budget": "ledger site_account",
    "The federation": "curious_server federation flower poisoned site votes",
    "Between machines": "gateway bank bundle enrolment file_drop", "The secure sum": "secure",
}  # fmt: skip
OWN_CHAPTERS = {subject: title for title, subjects in SUBJECTS.items() for subject in subjects.split()}
INTRODUCTION = """# What was tried against it

Each row is a test that tries an attack and opens the same door honestly. The page is generated from the tests
(`python tools/attacks.py`), so it says what is tested and nothing else. Numbers are those of the list that the format
was designed against; "own" are attacks beyond it. **The tests were written by the people who wrote the code; no outside
cryptographer has reviewed it yet.** What is not defended is at the end of [format.md](format.md).

"""
TABLE = "| no. | tried | powers | the door opens when | test |\n| --- | --- | --- | --- | --- |\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """One test, as its docstring describes it."""

    numbers: tuple[int, ...]
    sums: tuple[int, ...]
    attack: str
    powers: str
    control: str
    file: str
    name: str

    @property
    def chapter(self) -> str:
        """Where it is listed: by its first number; an own one by its file."""
        for title, numbers in CHAPTERS.items():
            if self.numbers and self.numbers[0] in numbers:
                return title
        subject = Path(self.file).stem.removeprefix("test_")
        while subject not in OWN_CHAPTERS and "_" in subject:
            subject = subject.rpartition("_")[0]
        return OWN_CHAPTERS.get(subject, "Elsewhere")


def tests_in(file: Path) -> Iterator[ast.FunctionDef]:
    """Every test function of a file, methods too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


def parse(node: ast.FunctionDef, file: Path) -> Attack | None:
    """The attack that a test's docstring describes, or None when it follows no such grammar."""
    found = GRAMMAR.fullmatch(" ".join((ast.get_docstring(node) or "").split()))
    if found is None:
        return None
    numbers, sums = (tuple(map(int, re.findall(rf"{of}(\d+)", found["numbers"]))) for of in "AS")
    return Attack(
        numbers=numbers, sums=sums, attack=found["attack"].removesuffix("."), powers=found["powers"].removesuffix("."),
        control=found["control"].lstrip(":, ").removeprefix("which is the point: ").removesuffix("."),
        file=str(file.relative_to(ROOT)), name=node.name,
    )  # fmt: skip


def collect() -> list[Attack]:
    """All attacks below tests/, in the order of the page."""
    files = sorted((ROOT / "tests").glob("*/test_*.py"))
    found = [attack for file in files for node in tests_in(file) if (attack := parse(node, file)) is not None]
    return sorted(
        found, key=lambda attack: (not attack.numbers, attack.numbers, not attack.sums, attack.sums, attack.file)
    )


def page(attacks: list[Attack]) -> str:
    """The whole of docs/attacks.md."""
    own = sum(not (attack.numbers or attack.sums) for attack in attacks)
    covered = {number for attack in attacks for number in attack.numbers}
    summed = {number for attack in attacks for number in attack.sums}
    count = (
        f"{len(attacks)} tests: {len(covered)} of the {len(KNOWN)} attacks of the list, {len(summed)} of the "
        f"{len(KNOWN_SUMS)} on the secure sum (S), {own} of our own.\n"
    )
    parts = [INTRODUCTION, count]
    for title in [*CHAPTERS, "The privacy budget", "The federation", "Between machines", "The secure sum", "Elsewhere"]:
        rows = [attack for attack in attacks if attack.chapter == title]
        if rows:
            parts.append(f"\n## {title}\n\n{TABLE}")
            parts += [_row(attack) for attack in rows]
    return "".join(parts)


def _row(attack: Attack) -> str:
    numbers = ", ".join([*map(str, attack.numbers), *(f"S{number}" for number in attack.sums)]) or "own"
    link = f"[{Path(attack.file).stem}](../{attack.file}): `{attack.name.removeprefix('test_')}`"
    cells = (numbers, attack.attack, attack.powers, attack.control)
    return f"| {' | '.join(_escaped(cell) for cell in cells)} | {link} |\n"


def _escaped(text: str) -> str:
    """Text as Markdown shows it, whatever it holds."""
    return re.sub(r"([|*<>\[\]])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(collect()), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(collect())} attacks\n")
