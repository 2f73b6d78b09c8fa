"""not-fed budget: what an officer types and reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from not_fed.cli import main as command
from not_fed.privacy.ledger.ledger import Ledger
from tests.support.ledgers import notes, plan, run

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Runs `not-fed budget ...`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": text}) for text in notes()]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines))
    people = [json.dumps({"text": text, "patient_id": f"p{number % 9}"}) for number, text in enumerate(notes(100, 150))]
    (tmp_path / "patients.jsonl").write_text("\n".join(people))

    def asked(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["not-fed", "budget", *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return asked


def answer(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one object on stdout."""
    assert result[0] == 0, result[2]
    return dict(json.loads(result[1]))


def test_a_budget_is_set_and_shown(ask: Ask, own_ledger: Path) -> None:
    made = answer(ask("set", "notes.jsonl", "--epsilon", "8", "--delta", "1e-5", "--json"))
    assert (made["schema"], made["dataset"], made["unit"]) == ("not-fed/budget/1", "notes.jsonl", "record")
    assert (made["allowed"], made["spent"], made["delta"], made["runs"], made["set"]) == (8.0, 0.0, 1e-5, 0, True)
    ledger = Ledger.at(own_ledger)
    run(ledger, ledger.identify(notes()), "one")
    shown = answer(ask("show", "notes.jsonl", "--json"))
    assert shown["spent"] == plan().epsilon().value
    assert shown["spent"] < shown["enforced"] < 8
    assert (shown["runs"], shown["order"], shown["relation"]) == (1, 4, "one record added or removed")
    assert shown["accountant"].startswith("dp-accounting")
    assert answer(ask("show", "--json"))["datasets"] == [shown]


def test_every_line_with_an_epsilon_says_delta_unit_and_relation(ask: Ask, own_ledger: Path) -> None:
    ask("set", "notes.jsonl", "--epsilon", "8", "--delta", "1e-5")
    ledger = Ledger.at(own_ledger)
    run(ledger, ledger.identify(notes()), "one")
    code, out, _ = ask("show", "notes.jsonl")
    _, history, _ = ask("history", "notes.jsonl")
    lines = [line for line in (out + history).splitlines() if "epsilon" in line]
    assert code == 0
    assert len(lines) == 5
    for line in lines:
        assert "at delta 1e-05 (one record added or removed)" in line
    assert "by PLD, the number to report" in out
    assert "by the filter of Renyi order 4, the hard stop" in out


def test_a_budget_that_nobody_set_says_what_it_is_and_one_that_was_exceeded_says_so(ask: Ask, own_ledger: Path) -> None:
    ledger = Ledger.at(own_ledger)
    run(ledger, ledger.identify(notes()), "one")
    _, out, _ = ask("show", "notes.jsonl")
    assert "epsilon 10.00 at delta 1e-05 (one record added or removed); the default, since nobody has set it" in out
    _, out, _ = ask("set", "notes.jsonl", "--epsilon", "1", "--delta", "1e-5")
    assert "more was spent than is allowed now, and nothing can follow" in out


def test_a_column_of_people_makes_the_unit(ask: Ask) -> None:
    made = answer(ask("set", "patients.jsonl", "--epsilon", "3", "--delta", "1e-5", "--json"))
    assert (made["unit"], made["relation"]) == ("person", "one person with all their records added or removed")
    code, _, err = ask("show", "patients.jsonl", "--unit", "record")
    assert code == 7
    assert "budget-unit" in err
    code, _, err = ask("set", "patients.jsonl", "--unit", "record", "--epsilon", "3", "--delta", "1e-5")
    assert code == 7  # no training would take it
    assert "unit-understates" in err


def test_history_lists_each_run(ask: Ask, own_ledger: Path) -> None:
    assert answer(ask("history", "--json"))["rows"] == []
    ledger = Ledger.at(own_ledger)
    data = ledger.identify(notes())
    run(ledger, data, "one")
    ledger.reserve(data, name="notes.jsonl", plan=plan(noise=20.0), run="two")
    rows = answer(ask("history", "notes.jsonl", "--json"))["rows"]
    assert [(row["run"], row["state"], row["purpose"]) for row in rows] == [
        ("one", "committed", "train"), ("two", "reserved", "train"),
    ]  # fmt: skip
    assert rows[0]["alone"] == rows[0]["composed"] < rows[1]["composed"]
    assert rows[1]["mechanisms"] == [{"sample_rate": 0.2, "noise_multiplier": 20.0, "steps": 10}]
    assert answer(ask("history", "--json"))["rows"] == rows


def test_raising_what_was_used_asks_first(ask: Ask, own_ledger: Path) -> None:
    ask("set", "notes.jsonl", "--epsilon", "8", "--delta", "1e-5")
    assert ask("set", "notes.jsonl", "--epsilon", "9", "--delta", "1e-5")[0] == 0, "nothing was spent"
    ledger = Ledger.at(own_ledger)
    run(ledger, ledger.identify(notes()), "one")
    code, _, err = ask("set", "notes.jsonl", "--epsilon", "10", "--delta", "1e-5")
    assert (code, "confirmation" in err) == (2, True)
    assert ask("set", "notes.jsonl", "--epsilon", "5", "--delta", "1e-5")[0] == 0, "lowering is free"
    assert answer(ask("set", "notes.jsonl", "--epsilon", "10", "--delta", "1e-5", "--yes", "--json"))["allowed"] == 10
    assert ask("set", "notes.jsonl", "--epsilon", "11", "--delta", "1e-5", "--yes")[0] == 7


def test_verify_wants_a_ledger_and_names_what_it_found(ask: Ask) -> None:
    code, _, err = ask("verify")
    assert (code, "ledger-missing" in err) == (6, True)
    ask("set", "notes.jsonl", "--epsilon", "8", "--delta", "1e-5")
    found = answer(ask("verify", "--json"))
    assert (found["schema"], found["whole"], found["rows"], found["organs"]) == (
        "not-fed/budget-verified/1", True, 3, 0,
    )  # fmt: skip
    assert len(found["head"]) == 64
    assert "an old copy is whole, too" in ask("verify")[2]


def test_a_sealed_organ_is_said_to_be_sealed_and_not_damaged(ask: Ask, own_ledger: Path, tmp_path: Path) -> None:
    Ledger.at(own_ledger)
    (tmp_path / "knee.sealed").write_bytes(b"age-encryption.org/v1\n" + bytes(100))
    code, _, err = ask("verify", "--organ", "knee.sealed")
    assert (code, "audit-sealed" in err) == (4, True)


def test_an_interruption_says_what_it_left(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer turns ^C into an exit code of its own, which once went by without a word."""

    def pressed() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("not_fed.privacy.ledger.ledger.ledger_folder", pressed)
    code, out, err = ask("show")
    assert (code, out, err.strip()) == (130, "", command.STOPPED)
