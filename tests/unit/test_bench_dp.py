"""`not-fed bench dp` from end to end on tiny models: what it reports and how it chooses, not how fast anything is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from not_fed.bench import dp_speed, dp_utility
from not_fed.bench.dp_picture import conclusion, utility_picture
from not_fed.bench.dp_settings import Rates, Setting, Size
from not_fed.bench.dp_speed import NAMES, STEP_RECORDS, bench_speed, extra_peak_mb
from not_fed.bench.dp_subjects import Kind, Subject
from not_fed.bench.dp_texts import BenchTexts
from not_fed.bench.dp_trainee import Recipe, Trainee, noisy_on_two_threads, schedule
from not_fed.bench.dp_utility import bench_utility
from not_fed.bench.harness import sweep
from not_fed.cli import main as command
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import open_base
from not_fed.privacy.accounting import DpPlan
from tests.support.tiny import tiny_gpt2, tiny_gpt_oss, tiny_llama

WORDS = [f"w{number}" for number in range(120)]


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """A base folder with a tokenizer of 120 words."""
    vocabulary = {word: number + 3 for number, word in enumerate(WORDS)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def kind_of(model: PreTrainedModel, folder: Path) -> Kind:
    return Kind(name=model.config.model_type, span=Span(1, 3), folder=saved(model, folder))


def texts(count: int) -> BenchTexts:
    """Sentences that repeat themselves, so that there is something to learn."""
    found = [" ".join([WORDS[(i * 7 + j) % 12] for j in range(4 + i % 5)]) for i in range(2 * count)]
    return BenchTexts(private=tuple(found[:count]), public=tuple(found[count:]), source="made up")


def test_each_route_gives_the_same_clipped_sum_and_what_cannot_run_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_speed, "_alone", extra_peak_mb)  # a process for each takes longer than all the rest
    result = bench_speed(
        [kind_of(tiny_llama(), tmp_path / "llama"), kind_of(tiny_gpt_oss(), tmp_path / "oss")], repeats=1
    )
    rows = {(row["model"], row["route"]): row for row in result["rows"]}
    assert {route for _, route in rows} == set(NAMES)
    failed = {key for key, row in rows.items() if "error" in row}
    assert failed == {("gpt_oss", route) for route in ("hooks", "ghost")}
    for key in failed:
        assert "Error: " in rows[key]["error"]
        assert "\n" not in rows[key]["error"]
    for key in rows.keys() - failed:
        row = rows[key]
        assert row["cpu_s"]["low"] <= row["cpu_s"]["median"] <= row["cpu_s"]["high"]
        assert row["ratio"]["median"] > 0
        assert set(row["steps"]) == {str(records) for records in STEP_RECORDS}
        assert row["extra_peak_mb"] >= 0
        if key[1] not in ("plain", "loop"):
            assert row["difference"] < 1e-4
    assert rows["llama", "plain"]["ratio"]["median"] == 1
    assert rows["llama", "plain"]["noise_cpu_s"] == 0
    assert result["machine"]["threads"] == 1
    lines = dp_speed.table(result).splitlines()
    assert {line.count("|") for line in lines} == {len(dp_speed.COLUMNS) + 1}


def test_a_route_with_a_wrong_sum_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(kind_of(tiny_gpt2(), tmp_path / "gpt2"))
    monkeypatch.setattr(dp_speed, "ROUTES", {"loop": dp_speed.ROUTES["loop"], "wrong": lambda _: _adds_one})
    _, errors, differences = dp_speed.working(subject)
    assert not errors
    assert differences["wrong"] > 0.1


def _adds_one(sums: dict[str, torch.Tensor]) -> None:
    for total in sums.values():
        total.add_(1.0)


def test_after_a_peers_route_the_subject_is_as_it_was(tmp_path: Path) -> None:
    subject = Subject(kind_of(tiny_llama(), tmp_path / "llama"))
    before = dict(vars(next(iter(subject.weights.values()))))
    dp_speed.working(subject)
    assert not any(module.training for layer in subject.layers for module in layer.modules())
    for weight in subject.weights.values():
        assert weight.requires_grad
        assert dict(vars(weight)) == before


SETTING = Setting(
    name="tiny",
    sample_rate=0.5,
    steps=4,
    epsilons=(None, 8.0),
    anchor=8.0,
    methods={
        "organ": Rates(private=(1e-3, 1e-2), plain=(1e-3, 1e-2)),
        "lora": Rates(private=(1e-3, 1e-2), plain=(1e-3, 1e-2)),
        "full": Rates(private=(1e-3, 1e-2), plain=(1e-3, 1e-2)),
    },
)
SIZE = Size(records=24, held_out=6, seeds=(0, 1), settings=(SETTING,), rank=2, precision="float32", most_rates=2)


def test_every_method_is_rehearsed_on_public_text_and_measured_on_private_text_under_one_plan(tmp_path: Path) -> None:
    base, out = open_base(saved(tiny_llama(), tmp_path / "base")), tmp_path / "result.json"
    result = bench_utility(base, texts=texts(30), span=Span(2, 4), size=SIZE, out=out)
    assert result == json.loads(out.read_text())
    jobs = list(result["jobs"].values())
    private = [job for job in jobs if job["stage"] == "private"]
    assert len(private) == 3 * 2 * 2  # methods, epsilons, seeds
    noise = {job["noise_multiplier"] for job in private if job["epsilon"]}
    assert len(noise) == 1  # one plan for all
    assert {job["divisor"] for job in jobs} == {12.0}
    weights = {job["method"]: job["weights"] for job in jobs}
    assert weights["lora"] < weights["organ"] < weights["full"]
    for row in result["rows"]:
        assert row["spread"][0] <= row["perplexity"] <= row["spread"][1]
        rehearsed = {
            job["recipe"]["lr"]: job["perplexity"]["value"]
            for job in jobs
            if (job["stage"], job["method"], job["epsilon"]) == ("rehearsal", row["method"], row["epsilon"])
        }
        assert row["lr"] == min(rehearsed, key=lambda lr: rehearsed[lr])
        assert row["tried"] == sorted(rehearsed)
    lines = dp_utility.table(result).splitlines()
    assert {line.count("|") for line in lines} == {len(dp_utility.COLUMNS) + 1}

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished job was run again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp_utility, "Trainee", nothing)
        assert bench_utility(base, texts=texts(30), span=Span(2, 4), size=SIZE, out=out) == result
    other = Size(records=20, held_out=6, seeds=(0,), settings=(SETTING,), rank=2, precision="float32")
    with pytest.raises(InputError, match="of the same size"):
        bench_utility(base, texts=texts(30), span=Span(2, 4), size=other, out=out)


def test_runs_at_a_rate_that_a_longer_sweep_no_longer_chooses_are_not_averaged_in() -> None:
    def job(stage: str, lr: float, perplexity: float, epsilon: float | None = None) -> dict[str, object]:
        return {
            "setting": "tiny", "method": "organ", "stage": stage, "epsilon": epsilon, "seed": 0, "weights": 1,
            "recipe": {"lr": lr, "clip": 1.0}, "perplexity": {"value": perplexity}, "noise_multiplier": 0.0,
            "cpu_seconds": 1.0,
        }  # fmt: skip

    jobs = [
        job("rehearsal", 0.1, 50.0),
        job("rehearsal", 0.2, 40.0),
        job("private", 0.1, 51.0),
        job("private", 0.2, 41.0),
    ]
    content = {"jobs": {str(i): one for i, one in enumerate(jobs)}, "base": {"private 0": {"value": 82.0}}}
    (row,) = dp_utility.summary(content, SIZE)["rows"]
    assert (row["lr"], row["values"], row["of_base"]) == (0.2, [41.0], 0.5)


def test_training_learns_and_reset_undoes_it(tmp_path: Path) -> None:
    base = open_base(saved(tiny_llama(), tmp_path / "base"))
    plan = DpPlan(sample_rate=1.0, steps=8, noise_multiplier=0.2, max_grad_norm=0.5, divisor=30, delta=1e-5)
    for method in ("organ", "lora", "full"):
        trainee = Trainee(base, method=method, span=Span(2, 4), rank=2, precision="float32")
        corpus = trainee.read("some", texts(30).private)
        trainee.reset(seed=0)
        before = trainee.perplexity(corpus, range(30))["value"]
        for private in (True, False):
            trainee.reset(seed=0)
            assert trainee.perplexity(corpus, range(30))["value"] == pytest.approx(before, rel=1e-6)
            done = list(trainee.train(corpus, range(30), recipe=Recipe(lr=2e-2, clip=0.5), plan=plan, private=private))
            assert done == list(range(1, 9))
            assert trainee.perplexity(corpus, range(30))["value"] < 0.95 * before
        assert not trainee.model.head.weight.requires_grad


def test_noise_on_two_threads_is_that_of_the_plan() -> None:
    plan = DpPlan(sample_rate=0.5, steps=1, noise_multiplier=2.0, max_grad_norm=3.0, divisor=10.0, delta=1e-5)
    sums = {str(part): torch.full((40, 500), 100.0, dtype=torch.float64) for part in range(3)}
    found = noisy_on_two_threads(sums, plan)
    assert list(found) and set(found) == set(sums)
    values = torch.stack(list(found.values()))
    assert float(values.mean()) == pytest.approx(10.0, abs=0.02)
    assert float(values.std()) == pytest.approx(0.6, rel=0.02)


def test_a_sweep_goes_on_past_an_end_that_is_best_and_stops_at_its_most() -> None:
    asked: list[float] = []

    def score(lr: float) -> float:
        asked.append(lr)
        return abs(lr - 0.4)

    assert sweep(score, (0.1, 0.2), most=6) == 0.4
    assert asked == [0.1, 0.2, 0.4, 0.8]
    assert sweep(lambda lr: -lr, (1.0, 2.0), most=4) == 8.0
    assert sweep(lambda lr: lr, (1.0, 2.0), most=4) == 0.25
    assert sweep(lambda lr: math.nan if lr >= 1 else lr, (1.0, 2.0), most=4) == 0.25  # a run that diverged is no choice


def test_a_warm_up_ends_at_the_peak() -> None:
    assert [schedule(step, 5, warmup=0.4) for step in range(5)] == [0.5, 1.0, 1.0, 2 / 3, 1 / 3]


def _row(method: str, epsilon: float | None, perplexity: float, *, setting: str = "side by side") -> dict[str, object]:
    return {"setting": setting, "method": method, "epsilon": epsilon, "perplexity": perplexity, "weights": 10,
            "values": [perplexity - 1, perplexity + 1]}  # fmt: skip


def test_the_picture_says_who_wins_where_and_a_method_alone_wins_nothing() -> None:
    rows = [_row("organ", 3.0, 50.0), _row("lora", 3.0, 40.0), _row("organ", 1.0, 60.0), _row("lora", 1.0, 65.0),
            _row("organ", None, 30.0), _row("lora", None, 20.0), _row("organ", 3.0, 10.0, setting="large")]  # fmt: skip
    found = conclusion(rows)
    assert found == "Best under one budget: organ at ε = 1; LoRA at ε = 3, ∞ (no noise)"
    result = {"rows": rows, "base": {"private 0": {"value": 70.0}}, "seeds": [0], "delta": 1e-5}
    assert utility_picture(result).startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--picture", "x.png"], ["--utility"]])
def test_options_that_do_not_go_together_are_refused_before_anything_runs(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["not-fed", "bench", "dp", *words])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert done.value.code == 2
    assert "--utility" in capsys.readouterr().err
