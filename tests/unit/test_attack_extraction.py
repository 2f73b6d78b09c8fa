"""Planted secrets in tiny organs: what was learnt by heart comes out, what was never planted or noised does not."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from not_fed.bench import attack_organs
from not_fed.bench.attack import NON_PRIVATE, extraction, plan_kinds
from not_fed.bench.attack_extraction import BASE, DIGITS, LETTERS, PROMPT, BadSecrets, _name, plan_secrets
from not_fed.bench.attack_organs import Operation
from not_fed.bench.attack_words import sentences
from not_fed.cli import main as command
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.train import TrainSettings, train
from not_fed.privacy.accounting import plan_dp
from tests.support import tiny
from tests.support.folders import records, save_base
from tests.support.seeded import Seeded

SPAN = Span(1, 3)
BY_HEART = TrainSettings(span=SPAN, lr=1e-2, epochs=15, batch_tokens=400, max_tokens=32)
WORDS = [*"0123456789", *LETTERS, *PROMPT.replace("{} ", "").split(), *(f"w{number}" for number in range(70))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny base whose tokenizer has the prompt's words, letters and digits."""
    folder = tmp_path_factory.mktemp("base") / "base"
    found = save_base(tiny.tiny_llama(), folder)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def asked(base: Base) -> Iterator[dict[str, Any]]:
    """One attack for several tests; its noise is repeatable."""
    planted = plan_secrets(each=4, repeats=[1, 16], candidates=64, seed=2)
    plan = plan_dp(epsilon=0.5, delta=1e-5, sample_rate=0.5, steps=10, max_grad_norm=1.0, divisor=50.0)
    notes = Records(tuple(records(40)))
    kinds = plan_kinds(BY_HEART, plans=[(0.5, plan)], private_lr=1e-2, records=notes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_organs, "train", functools.partial(train, source=Seeded(3)))
        yield extraction(base, records=notes, kinds=kinds, planted=planted)


def by_repeats(result: dict[str, Any], name: str) -> dict[int, dict[str, Any]]:
    (row,) = [row for row in result["kinds"] if row["name"] == name]
    return {one["repeats"]: one for one in row["exposure"]}


def test_a_secret_that_was_learnt_by_heart_comes_out(asked: dict[str, Any]) -> None:
    found = by_repeats(asked, NON_PRIVATE)
    assert found[16]["mean_bits"]["value"] == asked["most_bits"] == 6  # the first of 64, every time
    assert found[16]["written_out"] == found[16]["secrets"] == 4
    assert found[0]["mean_bits"]["value"] < found[0]["chance_below"]  # the control: never planted
    assert found[0]["written_out"] == 0
    assert asked["kinds"][1]["verdict"] == "told"
    assert "16 times came through" in asked["conclusion"]


def test_neither_the_base_nor_an_organ_of_small_epsilon_tells(asked: dict[str, Any]) -> None:
    for row, name in zip(asked["kinds"][::2], (BASE, "epsilon 0.5"), strict=True):
        assert row["name"] == name
        assert row["verdict"] == "not told from chance"
        assert sum(one["written_out"] for one in row["exposure"]) == 0
        assert all(one["mean_bits"]["value"] <= one["chance_below"] for one in row["exposure"] if one["repeats"])
    assert "delta 1e-05 (one record added or removed): planted secrets did not rank higher" in sentences(asked)[2]


def test_the_result_holds_the_planted_secrets_and_no_other_text(asked: dict[str, Any]) -> None:
    written = json.dumps(asked)
    assert len(asked["planted"]) == 12
    for secret in asked["planted"]:
        assert secret["text"] in written
    assert not any(text in written for text in records(40))
    assert "w1" not in written
    assert (asked["schema"], asked["attack"], asked["candidates"]) == ("not-fed/attacked/1", "extraction", 64)


def test_secrets_are_distinct_have_their_repeats_and_share_no_code_with_candidates() -> None:
    planted = plan_secrets(each=30, repeats=[4, 1, 4], candidates=100, seed=1)
    assert [secret.repeats for secret in planted.secrets] == [0] * 30 + [1] * 30 + [4] * 30
    codes = [secret.code for secret in planted.secrets]
    assert len(set(codes) | set(planted.others)) == 90 + 99
    assert all(len(code.split()) == DIGITS for code in codes)
    assert len({secret.prompt for secret in planted.secrets}) == 90
    assert planted != plan_secrets(each=30, repeats=[1, 4], candidates=100, seed=2)
    assert planted == plan_secrets(each=30, repeats=[1, 4], candidates=100, seed=1)
    assert [_name(number) for number in (0, 25, 26, 27, 702)] == ["A", "Z", "AA", "AB", "AAA"]


@pytest.mark.parametrize(
    "wrong", [{"prompt": "no name"}, {"prompt": "{} and {}"}, {"each": 0}, {"repeats": []}, {"repeats": [0, 1]},
              {"candidates": 1}]
)  # fmt: skip
def test_secrets_that_cannot_be_planted_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadSecrets):
        plan_secrets(**{"each": 2, "repeats": [1], **wrong})


def test_codes_that_a_tokenizer_cannot_tell_apart_are_refused(base: Base) -> None:
    planted = plan_secrets(each=2, repeats=[1], candidates=8)
    kinds = plan_kinds(TrainSettings(span=SPAN, max_tokens=8), plans=[], private_lr=1e-2, records=Records(()))
    with pytest.raises(BadSecrets, match="tells the secrets"):
        extraction(base, records=Records(tuple(records(20))), kinds=kinds, planted=planted)


def test_greedy_writing_is_the_models_own(base: Base) -> None:
    """Against transformers' generate, on the untouched base."""
    operation = Operation(base, span=SPAN)
    tokenizer, model = operation._tokenizer, operation._model.model
    prompt = "The access code of ward A is"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    best = model.generate(
        ids, attention_mask=ids != -1, do_sample=False, max_new_tokens=6, min_new_tokens=6, eos_token_id=None
    )
    whole = tokenizer.decode(best[0])
    other = whole.rsplit(" ", 1)[0] + (" w3" if not whole.endswith(" w3") else " w4")
    assert operation.completes([prompt] * 3, [whole, other, prompt]) == [True, False, False]


def test_where_people_are_the_unit_all_repeats_of_a_secret_are_one_persons(base: Base) -> None:
    notes = Records(tuple(records(24)), tuple(f"p{number // 2}" for number in range(24)), "patient", 2)
    plan = plan_dp(
        epsilon=0.5, delta=1e-5, sample_rate=0.5, steps=4, max_grad_norm=1.0, divisor=10.0, unit="person",
        records_per_person=2,
    )  # fmt: skip
    seen: list[Records] = []

    def watching(*args: object, **words: Any) -> object:  # noqa: ANN401
        seen.append(words["records"])
        return train(*args, **words)  # type: ignore[arg-type]

    planted = plan_secrets(each=2, repeats=[1, 3], candidates=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_organs, "train", watching)
        kinds = plan_kinds(BY_HEART, plans=[(0.5, plan)], private_lr=1e-2, records=notes)
        found = extraction(base, records=notes, kinds=kinds[1:], planted=planted)
    assert found["kinds"][1]["dp"]["unit"] == "person"
    people = seen[0].people or ()
    assert len(people) == 24 + 2 * (1 + 3)
    assert sorted(people[24:].count(person) for person in set(people[24:])) == [1, 1, 3, 3]
    assert seen[0].most_of_a_person == 3


def test_the_command_asks_the_organs_and_draws(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "notes.txt", tmp_path / "attack"
    data.write_text("\n".join(records(20)) + "\n")
    words = ["extraction", str(data), "--base", str(base.folder), "--span", "1:3", "--planted", "2", "--repeats", "1,8"]
    size = ["--candidates", "16", "--epochs", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["not-fed", "attack", *words, *size])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert not done.value.code
    said = capsys.readouterr()
    assert said.out.startswith("| organs | never planted | planted 1 times: bits (luck below) |")
    assert "Nothing of this may leave" in said.err
    assert {path.name for path in out.iterdir()} == {"attack.json", "attack.png", "index.html"}
    assert "exposure, bits" in (out / "index.html").read_text()
