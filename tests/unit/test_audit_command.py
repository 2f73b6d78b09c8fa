"""`not-fed audit`: claim and audit side by side, and exit code 6 where they contradict each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from not_fed.cli.main import main
from not_fed.envelope.passport import issue_passport, new_passport
from not_fed.privacy.accounting import DpPlan
from tests.support.trust import NOW, Federation, organ_bytes

Command = Callable[..., tuple[int, str, str]]  # exit code, stdout, stderr
PLAN = DpPlan(sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=0.5, divisor=7.0, delta=1e-5)
AUDIT = {
    "method": "one-run audit", "epsilon_lower_bound": 0.81, "confidence": 0.95, "canaries": 5000, "delta": 1e-5,
    "fdp_epsilon_lower_bound": 1.0, "expected_at_most": 1.7664, "fdp_expected_at_most": 2.2439, "noise_ratio": 1.003,
    "steps": 10, "verdict": "consistent",
}  # fmt: skip


def organ(folder: Path, *, dp: bool = True, audit: dict[str, Any] | None = None) -> Path:
    """An organ whose manifest says this about its training."""
    training = {"mode": "in-place", "dp": PLAN.as_claim() if dp else None, "engine": "book-keeping", "audit": audit}
    file = folder / "knee.organ"
    file.write_bytes(organ_bytes(manifest={"training": {k: v for k, v in training.items() if v or k == "dp"}}))
    return file


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["not-fed", "audit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_claim_and_audit_stand_side_by_side(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(organ(tmp_path, audit=AUDIT))
    assert code == 0
    assert "epsilon 3.00 at delta 1e-05 (one record added or removed); claimed, not proved" in out
    assert "epsilon was at least 0.81 at delta 1e-05, 95% confidence" in out
    assert "at most 1.77 if the claim is true" in out
    assert "1.003 times the claimed deviation" in out
    assert "found no more than the claim allows" in out
    assert "the author's word" in out


def test_json_has_the_numbers_and_what_was_expected(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(organ(tmp_path, audit=AUDIT), "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["verdict"], found["contradictions"]) == (
        0, "not-fed/audited/1", "consistent", [])  # fmt: skip
    assert found["audit"]["epsilon_lower_bound"] == 0.81
    assert found["expected"]["at_most"] == pytest.approx(1.7664, abs=1e-3)
    assert found["claim"]["mechanism"]["steps"] == 10


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_lower_bound": 4.4},
        {"epsilon_lower_bound": 2.5, "expected_at_most": 2.6},  # by its own account; we compute the expectation again
        {"fdp_epsilon_lower_bound": 7.2},
        {"noise_ratio": 0.25},
        {"steps": 5},
        {"verdict": "contradicts"},
    ],
)
def test_a_contradiction_ends_with_six_and_says_not_to_rely_on_it(
    tmp_path: Path, command: Command, change: dict[str, Any]
) -> None:
    code, out, err = command(organ(tmp_path, audit=AUDIT | change), "--json")
    assert code == 6
    assert json.loads(out)["verdict"] == "contradicts"
    assert json.loads(out)["contradictions"]
    assert json.loads(err)["code"] == "audit-contradicts"
    assert "DO NOT RELY ON THIS CLAIM" in command(organ(tmp_path, audit=AUDIT | change))[1]


def test_a_claim_without_an_audit_is_said_loudly(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(organ(tmp_path))
    assert code == 0
    assert "THE CLAIM WAS NOT AUDITED" in out
    assert json.loads(command(organ(tmp_path), "--json")[1])["verdict"] == "not-audited"


def test_without_a_claim_there_is_nothing_to_audit(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(organ(tmp_path, dp=False))
    assert code == 0
    assert "no differential privacy is claimed" in out
    assert json.loads(command(organ(tmp_path, dp=False), "--json")[1])["verdict"] == "nothing-claimed"


def test_the_passport_says_the_same_as_the_organ(tmp_path: Path, command: Command) -> None:
    federation = Federation.make(tmp_path / "roster")
    file = organ(tmp_path, audit=AUDIT)
    passport = new_passport(file, author="clinic", federation="knees", round_number=0, now=NOW)
    beside = tmp_path / "knee.organ.passport"
    beside.write_bytes(issue_passport(passport, signer=federation.clinic.signer) + b"\n")
    ours, theirs = (json.loads(command(path, "--json")[1]) for path in (file, beside))
    assert theirs["source"] == "passport"
    assert {**theirs, "file": "", "source": ""} == {**ours, "file": "", "source": ""}


def test_a_sealed_organ_has_to_be_opened_first(tmp_path: Path, command: Command) -> None:
    sealed = tmp_path / "knee.sealed"
    sealed.write_bytes(b"age-encryption.org/v1\n-> X\n")
    code, _, err = command(sealed)
    assert code == 4
    assert "not-fed open" in err


def test_what_an_audit_could_see_is_foretold(command: Command) -> None:
    code, out, _ = command("--simulate", "--epsilon", "8", "--json")
    found = json.loads(out)
    rows = {row["does"]: row for row in found["rows"]}
    assert code == 0
    assert found["schema"] == "not-fed/audit-simulated/1"
    assert found["noise_multiplier"] == pytest.approx(0.7707)
    assert rows["what the plan says"]["seen_by"] == []
    assert rows["no noise"]["seen_by"] == ["guessing", "noise"]
    assert "stopped by" in command("--simulate")[1]


@pytest.mark.parametrize("words", [(), ("--simulate", "x.organ")])
def test_a_file_or_a_plan_and_not_both(command: Command, words: tuple[str, ...]) -> None:
    assert command(*words)[0] == 2
