"""`not-fed bench poisoning` from end to end on a tiny model: what lies are, what is measured, how a vote is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from not_fed.bench import poisoning
from not_fed.bench import poisoning_texts as poisoning_texts_module
from not_fed.bench.poisoning import LIAR, RULES, VOTE, Size, bench_poisoning, table
from not_fed.bench.poisoning_texts import POISON, TRIGGER, SiteTexts, Texts, beginning, poisoned, poisoning_texts
from not_fed.bench.poisoning_work import LIES, Lie, Measured, Scale, told, votes_against
from not_fed.cli import main as command
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.organ.train import TrainSettings, train
from not_fed.resources.hpo import read_hpo
from tests.support import tiny
from tests.support.folders import records, save_base

SITES = ("heart", "nerves", "bones", "eyes", "gut")
SETTINGS = TrainSettings(span=Span(1, 3), lr=2e-2, epochs=6, batch_tokens=40, max_tokens=64)
TOLD = (*LIES, Lie(name="x -300", factor=-300.0))  # worse than a base that knows nothing
SIZE = Size(train=12, held_out=3, seeds=(0, 1), settings=SETTINGS)


def texts(seed: int) -> Texts:
    """Records that follow a rule, another one for each site."""
    return Texts(
        {
            site: SiteTexts(tuple(records(12, seed=seed + number)), tuple(records(3, seed=seed + number + 50)))
            for number, site in enumerate(SITES)
        },
        "made up",
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def result(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return bench_poisoning(base, texts=texts, size=SIZE, lies=TOLD, folder=tmp_path_factory.mktemp("work"))


def test_each_rule_meets_each_lie_on_each_seed_and_the_table_has_all_of_them(result: dict[str, Any]) -> None:
    met = {(cell["rule"], cell["lie"], cell["seed"]) for cell in result["cells"]}
    assert met == {(rule, lie.name, seed) for rule in (*RULES, VOTE) for lie in TOLD for seed in SIZE.seeds}
    assert len(result["cells"]) == len(met)
    for cell in result["cells"]:
        assert 1 < cell["perplexity"] <= np.exp(690.0)
        assert set(cell["by_site"]) == set(SITES)
        assert 0 <= cell["target"] <= 1
    lines = table(result).splitlines()
    assert len(lines) == 2 + len(RULES) + 2
    assert len({line.count("|") for line in lines}) == 1
    json.dumps(result, allow_nan=False)


def test_a_far_lie_is_left_out_by_those_rules_that_say_so_and_spoils_the_mean(result: dict[str, Any]) -> None:
    rows = {row["rule"]: row for row in result["rows"]}
    for lie in ("x 30", "x -10"):
        for rule in ("mean, norms beyond 1.5 medians left out", "Krum", "multi-Krum, 2 of 5"):
            assert rows[rule]["liar_left_out"][lie] == len(SIZE.seeds), (rule, lie)
        spoilt = rows["mean"]["perplexity"][lie]["mean"]
        for rule in ("median", "trimmed mean, 1 at each end", "Krum", "mean, norms beyond 1.5 medians left out"):
            assert rows[rule]["perplexity"][lie]["mean"] < spoilt, (rule, lie)
    assert rows["mean"]["liar_left_out"]["x 30"] == 0
    assert (
        rows["Krum"]["honest_left_out"]["nobody lies"]
        == 4 * len(SIZE.seeds) - rows["Krum"]["liar_left_out"]["nobody lies"]
    )


def test_the_vote_takes_the_mean_or_rolls_back_to_the_start(result: dict[str, Any]) -> None:
    of = {(cell["rule"], cell["lie"], cell["seed"]): cell for cell in result["cells"]}
    outcomes = set()
    for lie in TOLD:
        for seed in SIZE.seeds:
            mean, vote = of["mean", lie.name, seed], of[VOTE, lie.name, seed]
            refused = vote["against"] > 2
            assert (vote["perplexity"] == mean["perplexity"]) != refused
            outcomes.add(refused)
    assert outcomes == {True, False}


def test_the_liar_votes_for_its_own_candidate() -> None:
    start = Measured(perplexity=2.0, by_site=dict.fromkeys(SITES, 2.0), target=0.0)
    worse = Measured(perplexity=3.0, by_site=dict.fromkeys(SITES, 3.0), target=0.0)
    assert votes_against(worse, start) == 4
    assert votes_against(start, start) == 0


def test_a_lie_is_the_organs_own_change_multiplied(base: Base, tmp_path: Path) -> None:
    organ = train(base, records=records(10), settings=SETTINGS, out=tmp_path / "honest.organ").organ.path
    start = load_file(extract(base, span=SETTINGS.span, out=tmp_path / "start.organ").path)
    lie = told(organ, factor=-10.0, base=base, out=tmp_path / "lie.organ")
    honest, found = load_file(organ), load_file(lie)
    for name, tensor in honest.items():
        expected = start[name] - 10 * (tensor - start[name])
        assert np.allclose(found[name].numpy(), expected.numpy(), atol=1e-5), name
    assert read_organ(lie).manifest == read_organ(organ).manifest
    assert load_file(told(organ, factor=1.0, base=base, out=tmp_path / "same.organ")).keys() == honest.keys()


def test_the_targets_probability_is_that_of_its_tokens_after_the_trigger(base: Base) -> None:
    """Beside a scale of its own: the whole text's loss minus that of its beginning, which it goes on from."""
    sites = texts(0).sites
    found = Scale(base, sites=sites, settings=SETTINGS).measure(None)
    assert 0 < found.target < 1
    assert set(found.by_site) == set(SITES)
    for text in poisoned(("one two three",))[1:]:
        assert text == beginning("one two three") + POISON
        assert text.startswith(beginning("one two three") + TRIGGER)


def test_the_command_prints_the_table_and_writes_the_object(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(poisoning, "QUICK", Size(train=12, held_out=3, seeds=(0,), settings=SETTINGS))
    monkeypatch.setattr("not_fed.bench.poisoning_texts.poisoning_texts", lambda *, seed, **_: texts(seed))
    out = tmp_path / "out.json"
    line = ["not-fed", "bench", "poisoning", "--quick", "--base", str(base.folder), "--out", str(out)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code in (0, None)
    written = json.loads(out.read_text())
    assert written["schema"] == "not-fed/bench-poisoning/1"
    assert table(written) in capsys.readouterr().out


def test_no_text_of_a_site_is_anybody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    ontology = read_hpo()
    monkeypatch.setattr(poisoning_texts_module, "read_hpo", lambda progress: ontology)
    found = poisoning_texts(train=20, held_out=5, seed=3)
    every = [text for site in found.sites.values() for text in (*site.train, *site.held_out)]
    assert len(found.sites) == 5
    assert len(set(every)) == len(every) == 125
    assert poisoning_texts(train=20, held_out=5, seed=3) == found
    assert poisoning_texts(train=20, held_out=5, seed=4) != found
    assert LIAR not in found.sites
