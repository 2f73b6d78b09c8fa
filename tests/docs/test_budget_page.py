"""docs/budget.md: its sessions are typed as they stand, and its proofs exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from not_fed.cli import main as command
from not_fed.privacy.ledger.ledger import Ledger
from tests.support.ledgers import notes, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
SESSIONS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
CHANGING = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|\b[0-9a-f]{64}\b")  # times and hashes


def typed(session: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The session, with what the command really answers."""
    lines = []
    for line in session.splitlines():
        if line.startswith("$ not-fed "):
            monkeypatch.setattr("sys.argv", line[2:].split())
            with pytest.raises(SystemExit) as ended:
                command.main()
            assert ended.value.code == 0
            lines.append(f"{line}\n{capsys.readouterr().out}")
    return "".join(lines)


def test_the_sessions_on_the_page_are_what_one_sees(
    own_ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in notes()))
    first, second = SESSIONS
    assert typed(first, monkeypatch, capsys) == first
    ledger = Ledger.at(own_ledger)
    for name in ("one", "two"):
        run(ledger, ledger.identify(notes()), name)
    assert CHANGING.sub("...", typed(second, monkeypatch, capsys)) == CHANGING.sub("...", second)


def test_every_proof_on_the_page_is_a_file() -> None:
    links = re.findall(r"\]\(\.\./(tests/[^)]+)\)", PAGE)
    assert len(links) >= 9
    assert all((ROOT / link).is_file() for link in links)
