"""Every command one by one, as typed, with `--json` and the fields and exit codes that other programs rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from not_fed.cli import main as command
from tests.support import tiny
from tests.support.folders import records, save_base


class Outcome(NamedTuple):
    """What a command left: exit code, the JSON object on stdout or stderr, and everything it said."""

    code: int
    json: dict[str, Any]
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `not-fed WORDS` in the empty folder tmp_path, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["not-fed", *map(str, words)])
        capsys.readouterr()
        try:
            command.main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        out, err = capsys.readouterr()
        last = out if code == 0 else err.strip().rpartition("\n")[2]
        return Outcome(code, json.loads(last) if "--json" in words else {}, out, err)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two bases, records, broken records and a passphrase."""
    save_base(tiny.tiny_llama(), tmp_path / "base")
    save_base(tiny.tiny_llama(seed=1), tmp_path / "other-base")
    save_base(tiny.tiny_gpt2(), tmp_path / "gpt2")
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records(60)))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records(20, seed=9)))
    people = [{"text": text, "patient_id": number // 3} for number, text in enumerate(records(60, seed=4))]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(record) + "\n" for record in people))
    (tmp_path / "broken.jsonl").write_text('{"text": "w1 w2"}\n{"text": \n')
    (tmp_path / "pass").write_text("correct horse battery staple\n")
    (tmp_path / "pass").chmod(0o600)
    return tmp_path


TRAIN = ("train", "notes.jsonl", "--base", "base", "--span", "1:3", "--batch-tokens", 60)


def test_an_organs_life_from_data_to_a_better_model(not_fed: Run, place: Path) -> None:
    extracted = not_fed("extract", "--base", "base", "--span", "1:3", "--out", "plain.organ", "--json").json
    assert extracted["span"] == [1, 3]
    planned = not_fed(*TRAIN, "--epsilon", 8, "--delta", 1e-4, "--sample-rate", 0.2, "--dry-run", "--json").json
    assert planned["schema"] == "not-fed/planned/1"
    assert planned.keys() >= {
        "records",
        "steps",
        "expected_batch",
        "epsilon",
        "delta",
        "unit",
        "noise_multiplier",
        "sample_rate",
        "max_grad_norm",
    }
    assert planned["epsilon"] <= 8
    trained = not_fed(*TRAIN, "--epochs", 3, "--lr", 0.01, "--out", "knee.organ", "--json").json
    assert trained["schema"] == "not-fed/trained/1"
    assert trained.keys() >= {
        "organ",
        "span",
        "records",
        "steps",
        "tokens",
        "seconds",
        "loss_first",
        "loss_last",
        "epsilon",
        "delta",
        "unit",
    }
    assert trained["epsilon"] is None
    assert trained["records"] == 60
    private = not_fed(*TRAIN, "--epsilon", 8, "--delta", 1e-4, "--out", "private.organ", "--json").json
    assert private["epsilon"] <= 8
    assert private["unit"] == "record"
    assert (private["loss_first"], private["loss_last"]) == (None, None)
    assert private["audit"]["verdict"] == "consistent"
    assert len(private["ledger_head"]) == 64
    shown = not_fed("show", "knee.organ", "--json").json
    assert shown.keys() >= {
        "kind",
        "family",
        "span",
        "parameters",
        "size_bytes",
        "base_sha256",
        "organ_sha256",
        "tensors",
    }
    assert (shown["kind"], shown["family"]) == ("organ", "llama")
    before = not_fed("evaluate", "base", "--data", "held.jsonl", "--json").json
    assert before.keys() >= {"perplexity", "ci_low", "ci_high", "tokens", "records", "seconds"}
    dry = not_fed("transplant", "knee.organ", "--into", "base", "--dry-run", "--json").json
    assert dry["dry_run"] is True
    assert not (place / "new").exists()
    done = not_fed("transplant", "knee.organ", "--into", "base", "--out", "new", "--json").json
    assert done["replaced"] == dry["replaced"]
    after = not_fed("evaluate", "new", "--data", "held.jsonl", "--json").json
    in_place = not_fed("evaluate", "base", "--data", "held.jsonl", "--organ", "knee.organ", "--json").json
    assert after["perplexity"] < before["perplexity"]
    assert after["perplexity"] == pytest.approx(in_place["perplexity"], rel=1e-4)


def test_people_in_the_data_are_the_unit_and_a_dry_run_spends_nothing(not_fed: Run, place: Path) -> None:
    words = ("train", "people.jsonl", "--base", "base", "--span", "1:3", "--epsilon", 3, "--release", "mean_loss")
    planned = not_fed(*words, "--dry-run", "--json").json
    assert (planned["unit"], planned["units"], planned["records"], planned["expected_batch"]) == ("person", 20, 60, 2.0)
    assert planned["relation"] == "one person with all their records added or removed"
    assert planned["epsilon"] <= 3 < planned["epsilon_renyi"]
    assert planned["epsilon_prv"] == pytest.approx(planned["epsilon"], abs=0.02)
    assert (planned["spent"], planned["allowed"], planned["fits"]) == (0.0, 10.0, True)
    assert planned["spent_after"] == planned["epsilon"]
    assert not_fed("budget", "show", "people.jsonl", "--json").json["runs"] == 0
    said = not_fed(*words, "--dry-run").out
    assert "(one person added or removed)" in said
    trained = not_fed(*words, "--out", "knee.organ", "--json").json
    assert (trained["unit"], trained["records_per_person"]) == ("person", 4)
    assert [one["name"] for one in trained["releases"]] == ["mean_loss"]
    spent = not_fed("budget", "show", "people.jsonl", "--json").json
    assert (spent["runs"], spent["spent"]) == (1, trained["epsilon"])
    verified = not_fed("budget", "verify", "--organ", "knee.organ", "--json")
    assert (verified.code, verified.json["organs"]) == (0, 1)


def test_a_run_that_does_not_fit_is_refused_with_what_would_and_leaves_nothing(not_fed: Run, place: Path) -> None:
    not_fed("budget", "set", "notes.jsonl", "--epsilon", 2, "--delta", 1e-4)
    words = (*TRAIN, "--epsilon", 3, "--sample-rate", 0.2)
    refused = not_fed(*words, "--out", "o.organ", "--json")
    assert (refused.code, refused.json["code"]) == (7, "budget-spent")
    assert "what would fit" in refused.json["hint"]
    planned = not_fed(*words, "--dry-run", "--json").json
    assert (planned["delta"], planned["fits"], planned["left_after"]) == (1e-4, False, None)  # the budget's own delta
    assert "noise_multiplier" in planned["would_fit"]
    assert list(place.glob("*o.organ*")) == []
    assert not_fed("budget", "show", "notes.jsonl", "--json").json["runs"] == 0
    plainly = not_fed(*TRAIN, "--out", "o.organ", "--json")
    assert (plainly.code, plainly.json["code"]) == (7, "budget-plain")
    assert not_fed(*TRAIN, "--plain", "--dry-run", "--json").code == 0


def enrol(not_fed: Run, *names: str) -> None:
    for name in names:
        steward = ["--steward"] if name == "steward" else []
        made = not_fed("keys", "create", name, "--out", f"{name}.keys", "--passphrase-file", "pass", *steward, "--json")
        assert made.code == 0, made.err
    members = [
        word
        for name in names
        if name != "steward"
        for word in ("--member", f"{name}.keys/identity.json:author,receiver")
    ]
    made = not_fed(
        "roster",
        "create",
        "roster",
        "--federation",
        "knees",
        "--steward",
        "steward.keys",
        "--passphrase-file",
        "pass",
        *members,
        "--json",
    )
    assert made.code == 0, made.err


def test_a_sealed_organ_from_one_site_to_another(not_fed: Run, place: Path) -> None:
    enrol(not_fed, "steward", "clinic", "hub", "third")
    not_fed(
        "train",
        "notes.jsonl",
        "--base",
        "base",
        "--span",
        "1:3",
        "--epsilon",
        8,
        "--delta",
        1e-4,
        "--out",
        "knee.organ",
    )
    own = not_fed("show", "knee.organ", "--json").json
    seal = (
        "seal",
        "knee.organ",
        "--to",
        "hub",
        "--identity",
        "clinic.keys",
        "--roster",
        "roster",
        "--passphrase-file",
        "pass",
    )
    assert not_fed(*seal, "--out", "knee.sealed", "--json").code == 0
    sealed = not_fed("show", "knee.sealed", "--json").json
    assert sealed["kind"] == "sealed"
    assert sealed["organ_sha256"] is None
    blind = not_fed("verify", "knee.sealed", "--roster", "roster", "--json").json
    fields = {
        "trusted",
        "sender",
        "author",
        "recipients",
        "federation",
        "round",
        "organ_sha256",
        "base_sha256",
        "span",
        "epsilon",
        "delta",
        "unit",
        "recalled",
    }
    assert blind.keys() >= fields
    assert (blind["trusted"], blind["sender"], blind["organ_sha256"]) == (True, "clinic", None)
    hub = ("--identity", "hub.keys", "--passphrase-file", "pass", "--roster", "roster")
    seen = not_fed("verify", "knee.sealed", *hub, "--json").json
    assert (seen["author"], seen["recipients"], seen["span"]) == ("clinic", ["hub"], [1, 3])
    assert seen["organ_sha256"] == own["organ_sha256"]
    assert 0 < seen["epsilon"] <= 8
    opened = not_fed("open", "knee.sealed", *hub, "--out", "received.organ", "--json").json
    assert opened.keys() >= {"sender", "author", "organ", "organ_sha256"}
    assert (place / "received.organ").read_bytes() == (place / "knee.organ").read_bytes()
    wrong = not_fed(
        "open",
        "knee.sealed",
        "--identity",
        "third.keys",
        "--passphrase-file",
        "pass",
        "--roster",
        "roster",
        "--out",
        "x.organ",
        "--json",
    )
    assert wrong.code == 6
    assert wrong.json["schema"] == "not-fed/error/1"
    damaged = bytearray((place / "knee.sealed").read_bytes())
    damaged[-100] ^= 1
    (place / "damaged.sealed").write_bytes(damaged)
    assert not_fed("open", "damaged.sealed", *hub, "--out", "x.organ", "--json").code == 6
    assert not (place / "x.organ").exists()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("train", "broken.jsonl", "--base", "base", "--span", "1:3", "--out", "o"), 4, "bad-record"),
        (("train", "nowhere.jsonl", "--base", "base", "--span", "1:3", "--out", "o"), 4, "not-a-file"),
        (("train", "notes.jsonl", "--base", "base", "--span", "3:9", "--out", "o"), 5, "span-outside"),
        (("train", "notes.jsonl", "--base", "base", "--span", "x", "--out", "o"), 4, "bad-span"),
        (("train", "notes.jsonl", "--base", "base", "--span", "1:3"), 2, "usage"),
        (("train", "notes.jsonl", "--base", "base", "--span", "1:3", "--unit", "patient", "--out", "o"), 2, "usage"),
        (
            ("train", "notes.jsonl", "--base", "base", "--span", "1:3", "--epsilon", "50", "--out", "o"),
            7,
            "epsilon-weak",
        ),
        (
            (
                "train",
                "people.jsonl",
                "--base",
                "base",
                "--span",
                "1:3",
                "--epsilon",
                "3",
                "--unit",
                "record",
                "--out",
                "o",
            ),
            7,
            "unit-understates",
        ),
        (
            (
                "train",
                "notes.jsonl",
                "--base",
                "base",
                "--span",
                "1:3",
                "--epsilon",
                "3",
                "--unit",
                "doctor",
                "--out",
                "o",
            ),
            4,
            "no-person",
        ),
        (
            ("train", "notes.jsonl", "--base", "base", "--span", "1:3", "--release", "mean_loss", "--out", "o"),
            2,
            "usage",
        ),
        (("train", "notes.jsonl", "--base", "notes.jsonl", "--span", "1:3", "--out", "o"), 4, "not-a-base"),
        (("transplant", "plain.organ", "--into", "other-base", "--out", "o"), 5, "other-base"),
        (("transplant", "plain.organ", "--into", "gpt2", "--out", "o"), 5, "blood-type"),
        (("transplant", "base/model.safetensors", "--into", "base", "--out", "o"), 4, "not-an-organ"),
        (("show", "notes.jsonl"), 4, "tensor-header"),
        (("evaluate", "base", "--data", "broken.jsonl"), 4, "bad-record"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_leaves_nothing(
    not_fed: Run, place: Path, words: tuple[str, ...], code: int, error: str
) -> None:
    not_fed("extract", "--base", "base", "--span", "1:3", "--out", "plain.organ")
    before = sorted(place.iterdir())
    outcome = not_fed(*words, "--json")
    assert (outcome.code, outcome.json["code"]) == (code, error)
    assert outcome.json.keys() == {"schema", "code", "where", "expected", "got", "hint"}
    assert outcome.out == ""
    assert sorted(place.iterdir()) == before


def test_a_broken_record_is_named_for_people_too(not_fed: Run, place: Path) -> None:
    said = not_fed("evaluate", "base", "--data", "broken.jsonl").err
    assert said.startswith("error[bad-record] A record cannot be read.")
    assert "broken.jsonl, line 2" in said


def test_the_installed_command_answers(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("not-fed")
    assert "not-fed 0" in subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    wrong = subprocess.run([script, "train"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
