"""Membership inference on tiny organs: what learnt by heart is caught, what learnt with noise is not, nothing leaks."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed.bench import attack_organs
from not_fed.bench.attack import NON_PRIVATE, membership, membership_of_organ, plan_kinds
from not_fed.bench.attack_membership import LIRA, REFERENCE, Units
from not_fed.bench.attack_organs import Kind, Operation, part
from not_fed.bench.attack_scores import BadShadows, TooFewUnits
from not_fed.bench.attack_words import membership_verdict
from not_fed.cli import main as command
from not_fed.errors import NotFedError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.train import Diverged, TrainSettings, train
from not_fed.organ.units import UnitUnderstates
from not_fed.privacy.accounting import plan_dp
from tests.support import tiny
from tests.support.folders import save_base
from tests.support.seeded import Seeded

SPAN = Span(1, 3)
BY_HEART = TrainSettings(span=SPAN, lr=1e-2, epochs=20, batch_tokens=200, max_tokens=32)


def notes(count: int, *, seed: int = 0) -> Records:
    """Random words: nothing can be learnt but the records themselves."""
    source = random.Random(seed)
    return Records(
        tuple(" ".join(f"w{source.randrange(100)}" for _ in range(source.randint(5, 12))) for _ in range(count))
    )


def private(epsilon: float, *, records: Records | None = None) -> Kind:
    whose = records or notes(1)
    plan = plan_dp(
        epsilon=epsilon, delta=1e-5, sample_rate=0.5, steps=10, max_grad_norm=1.0, divisor=10.0, unit=whose.unit,
        records_per_person=whose.most_of_a_person,
    )  # fmt: skip
    return plan_kinds(BY_HEART, plans=[(epsilon, plan)], private_lr=1e-2, records=whose)[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def attacked(base: Base) -> Iterator[dict[str, Any]]:
    """One attack for several tests; its noise is repeatable, or one run in twenty would leave its own interval."""
    kinds = [Kind(name=NON_PRIVATE, settings=BY_HEART), private(0.5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_organs, "train", functools.partial(train, source=Seeded(3)))
        yield membership(base, records=notes(60), kinds=kinds, shadows=4, seed=1)


def test_an_organ_that_learnt_by_heart_is_caught(attacked: dict[str, Any]) -> None:
    plain = attacked["kinds"][0]
    for name in (REFERENCE, LIRA):
        assert plain["attacks"][name]["auc"]["ci_low"] > 0.9
        assert plain["attacks"][name]["refuted"]["epsilon"] > 1
    assert plain["verdict"] == "told apart"
    assert plain["perplexity"]["members"] < plain["perplexity"]["others"] / 2
    assert "non-private: records that were trained on can be told from others" in attacked["conclusion"]
    assert len(plain["most_exposed"]) == 10
    assert all(1 <= one["record"] <= 60 for one in plain["most_exposed"])


def test_an_organ_of_small_epsilon_is_not_told_from_chance(attacked: dict[str, Any]) -> None:
    noisy = attacked["kinds"][1]
    for name in (REFERENCE, LIRA):
        assert noisy["attacks"][name]["auc"]["ci_low"] <= 0.5 <= noisy["attacks"][name]["auc"]["ci_high"]
        assert noisy["attacks"][name]["refuted"]["epsilon"] <= noisy["epsilon"] <= 0.5
    assert noisy["verdict"] == "not told from chance"
    assert noisy["most_exposed"] == []
    assert "no attacker here told records that were trained on from others" in attacked["conclusion"]


def test_the_result_says_what_it_was_and_holds_no_text(attacked: dict[str, Any], base: Base) -> None:
    assert attacked["schema"] == "not-fed/attacked/1"
    assert (attacked["attack"], attacked["unit"], attacked["units"], attacked["shadows"]) == (
        "membership",
        "record",
        60,
        4,
    )
    assert attacked["organs_of_each_kind"] == 6
    assert attacked["base_sha256"] == base.sha256
    assert "may leave" in attacked["stays"]
    written = json.dumps(attacked)
    assert not any(text in written for text in notes(60).texts)
    assert "w1 " not in written
    row = attacked["kinds"][0]["attacks"][LIRA]
    assert row["members"] + row["others"] == 6 * 60
    assert [one["few"] for one in row["tpr"]] == [True, True]
    for shares in (attacked["kinds"][0]["histogram"]["members"], attacked["kinds"][0]["histogram"]["others"]):
        assert sum(shares) == pytest.approx(1)


def test_no_rehearsal_is_charged_to_the_data_holders_ledger(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOT_FED_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    operation = Operation(base, span=SPAN, max_tokens=32)
    with operation.trained(private(1.0), operation.prepare(notes(30)), range(20), seed=0) as organ:
        assert organ.manifest.training is not None
        assert organ.manifest.training["dp"]["epsilon"] <= 1.0
        assert organ.path.is_file()
    assert list(tmp_path.iterdir()) == []  # neither a ledger, nor the organ, nor what it was charged to


def test_the_prefix_is_computed_once_and_changes_no_organ(base: Base, tmp_path: Path) -> None:
    records, indices = notes(30), [3, 4, 9, 20, 21]
    operation = Operation(base, span=SPAN, max_tokens=32)
    kind = Kind(name=NON_PRIVATE, settings=BY_HEART)
    direct = train(base, records=part(records, indices), settings=BY_HEART, out=tmp_path / "direct.organ")
    prepared = operation.prepare(records)
    with operation.trained(kind, prepared, indices, seed=0) as organ:
        through = operation.losses(prepared, organ.path)
    assert through == pytest.approx(operation.losses(prepared, direct.organ.path), rel=1e-3)
    assert operation.losses(prepared) == pytest.approx(Operation(base, span=SPAN).losses(prepared), rel=1e-6)


def test_people_are_attacked_with_all_of_their_records(base: Base) -> None:
    records = notes(60)
    people = Records(records.texts, tuple(f"p{number // 2}" for number in range(60)), "patient", 2)
    kinds = [Kind(name=NON_PRIVATE, settings=BY_HEART), private(0.5, records=people)]
    found = membership(base, records=people, kinds=kinds, shadows=4)
    assert (found["unit"], found["units"], found["records"]) == ("person", 30, 60)
    assert found["kinds"][0]["attacks"][LIRA]["auc"]["ci_low"] > 0.9
    assert found["kinds"][0]["attacks"][LIRA]["members"] + found["kinds"][0]["attacks"][LIRA]["others"] == 6 * 30
    assert all(one["record"] % 2 == 1 for one in found["kinds"][0]["most_exposed"])  # a person's first record
    assert found["kinds"][1]["dp"]["unit"] == "person"
    assert "p1" not in json.dumps(found["kinds"])
    units = Units.among(people, [0, 1, 4, 5])
    assert units.of == (0, 0, 1, 1)
    assert units.records_of(np.array([False, True])) == [2, 3]


def test_an_epsilon_per_record_is_refused_where_people_have_several(base: Base) -> None:
    settings = private(1.0).settings
    assert settings.dp is not None
    several = Records(notes(30).texts, None, None, most_of_a_person=3)
    with pytest.raises(UnitUnderstates):
        plan_kinds(BY_HEART, plans=[(1.0, settings.dp)], private_lr=1e-2, records=several)


def test_an_organ_that_is_there_is_attacked_with_members_and_others(base: Base, tmp_path: Path) -> None:
    members, others = notes(30, seed=1), notes(30, seed=2)
    organ = train(base, records=members, settings=BY_HEART, out=tmp_path / "theirs.organ").organ.path
    caught = membership_of_organ(base, organ=organ, members=members, others=others)
    assert caught["kinds"][0]["attacks"][REFERENCE]["auc"]["ci_low"] > 0.9
    assert "refuted" not in caught["kinds"][0]["attacks"][REFERENCE]  # nobody tossed coins
    assert LIRA not in caught["kinds"][0]["attacks"]
    strangers = membership_of_organ(base, organ=organ, members=notes(30, seed=3), others=others)
    assert strangers["kinds"][0]["verdict"] == "not told from chance"


def test_records_without_a_prediction_are_left_out_and_counted(base: Base) -> None:
    records = notes(40)
    with_short = Records(("w1", *records.texts[:20], "w2", *records.texts[20:]))
    found = membership(base, records=with_short, kinds=[Kind(name=NON_PRIVATE, settings=BY_HEART)], shadows=4)
    assert (found["records"], found["left_out"]) == (40, 2)
    assert max(one["record"] for one in found["kinds"][0]["most_exposed"]) > 20
    assert not {1, 22} & {one["record"] for one in found["kinds"][0]["most_exposed"]}


@pytest.mark.parametrize("shadows", [2, 5])
def test_odd_and_few_shadows_are_refused_before_anything_is_trained(base: Base, shadows: int) -> None:
    with pytest.raises(BadShadows):
        membership(base, records=notes(40), kinds=[Kind(name=NON_PRIVATE, settings=BY_HEART)], shadows=shadows)


def test_too_few_records_are_refused(base: Base) -> None:
    with pytest.raises(TooFewUnits):
        membership(base, records=notes(10), kinds=[Kind(name=NON_PRIVATE, settings=BY_HEART)], shadows=4)


def test_what_training_refuses_is_passed_on(base: Base) -> None:
    wild = Kind(name=NON_PRIVATE, settings=TrainSettings(span=SPAN, lr=1e30, epochs=2, max_tokens=32))
    with pytest.raises(Diverged):
        membership(base, records=notes(40), kinds=[wild], shadows=4)


def test_the_verdict_is_the_better_attackers() -> None:
    """An attacker who fails is no comfort where another one succeeds."""

    def row(reference: float, shadows: float, *, refuted: float = 0.0, claim: float | None = None) -> dict[str, Any]:
        attacks = {
            name: {"auc": {"value": low, "ci_low": low, "ci_high": 1}, "refuted": {"epsilon": refuted}}
            for name, low in ((REFERENCE, reference), (LIRA, shadows))
        }
        return {"name": "x", "epsilon": claim, "attacks": attacks}

    assert membership_verdict(row(0.55, 0.49)) == membership_verdict(row(0.49, 0.55)) == "told apart"
    assert membership_verdict(row(0.5, 0.49, refuted=3)) == "not told from chance"
    assert membership_verdict(row(0.5, 0.49, refuted=3, claim=3)) == "not told from chance"
    assert membership_verdict(row(0.9, 0.9, refuted=3.1, claim=3)) == "contradicts its claim"


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["not-fed", "attack", *words])
    with pytest.raises(SystemExit) as done:
        command.main()
    return int(done.value.code or 0)


def test_the_command_writes_a_private_folder_with_numbers_picture_and_page(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "notes.jsonl", tmp_path / "attack"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in notes(24).texts))
    words = ["membership", str(data), "--base", str(base.folder), "--span", "1:3", "--shadows", "4", "--epochs", "2"]
    assert run([*words, "--epsilon", "8", "--sample-rate", "0.5", "--out", str(out), "--json"], monkeypatch) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result == json.loads((out / "attack.json").read_text())
    assert [row["name"] for row in result["kinds"]] == ["non-private", "epsilon 8"]
    assert "Nothing of this may leave" in said.err
    assert out.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()} == dict.fromkeys(
        ["attack.json", "attack.png", "index.html"], 0o600
    )
    assert (out / "attack.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text()
    assert "<svg" in page
    assert "epsilon 8" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not any(text in page for text in notes(24).texts)
    assert run([*words, "--out", str(out)], monkeypatch) == 4  # the folder is there already; before training anything


def test_the_command_attacks_an_organ_that_is_there_and_prints_a_table(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: tmp_path / f"{name}.txt" for name in ("in", "out")}
    for seed, path in enumerate(paths.values()):
        path.write_text("\n".join(notes(20, seed=seed).texts) + "\n")
    organ = train(base, records=notes(20), settings=BY_HEART, out=tmp_path / "o.organ").organ.path
    words = ["membership", "--base", str(base.folder), "--organ", str(organ), "--members", str(paths["in"])]
    assert run([*words, "--non-members", str(paths["out"]), "--out", str(tmp_path / "a")], monkeypatch) == 0
    said = capsys.readouterr()
    assert "| o.organ | reference loss |" in said.out
    assert "can be told from others" in said.out
    assert "deleted" not in said.err  # nothing was trained


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["membership", "--base", "BASE"], 2),
        (["membership", "DATA", "--base", "BASE"], 2),
        (["membership", "DATA", "--base", "BASE", "--span", "1:3", "--members", "DATA"], 2),
        (["membership", "--base", "BASE", "--organ", "DATA", "--members", "DATA"], 2),
        (["membership", "DATA", "--base", "BASE", "--span", "three"], 4),
        (["membership", "DATA", "--base", "BASE", "--span", "1:9"], 5),
        (["membership", "DATA", "--base", "BASE", "--span", "1:3", "--shadows", "3"], 4),
        (["membership", "DATA", "--base", "BASE", "--span", "1:3"], 4),  # three records
        (["membership", "DATA", "--base", "BASE", "--span", "1:3", "--epsilon", "11"], 7),
        (["membership", "NOWHERE.txt", "--base", "BASE", "--span", "1:3"], 4),
        (["membership", "DATA", "--base", "NOWHERE", "--span", "1:3"], 4),
        (["extraction", "DATA", "--base", "BASE", "--span", "1:3", "--repeats", "one"], 2),
        (["extraction", "DATA", "--base", "BASE", "--span", "1:3", "--prompt", "no name in it"], 4),
        (["extraction", "DATA", "--base", "BASE", "--span", "1:3"], 4),  # this tokenizer has no digits
    ],
)
def test_bad_input_has_its_exit_code_and_leaves_no_folder(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    data = tmp_path / "notes.txt"
    data.write_text("w1 w2 w3\nw2 w3\nw3 w4\n")
    places = {"BASE": str(base.folder), "DATA": str(data), "NOWHERE": str(tmp_path / "nowhere")}
    filled = [places.get(word, word) for word in words]
    assert run([*filled, "--out", str(tmp_path / "attack")], monkeypatch) == code
    assert not (tmp_path / "attack").exists()


def test_a_missing_picture_library_is_said_before_training(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    from not_fed.bench.attack_pictures import require_pictures

    with pytest.raises(NotFedError, match="matplotlib") as caught:
        require_pictures()
    assert "not-fed[demo]" in caught.value.hint
