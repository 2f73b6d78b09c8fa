"""`bench organ` on a tiny model: who learns what, that finished runs are kept, and what the tables conclude."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from not_fed.bench import organ, organ_texts
from not_fed.bench.learners import Learner, Method, teach
from not_fed.bench.organ import Size, bench_organ, budgets, methods_for, table
from not_fed.bench.organ_picture import conclusion, frontier, organ_picture
from not_fed.bench.organ_texts import Texts, pooled, split_texts
from not_fed.cli import main as command
from not_fed.errors import InputError
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.prefix import tokenise
from not_fed.organ.split import load_tokenizer
from not_fed.resources import bases
from tests.support.tiny import tiny_llama
from tests.unit.test_bench_dp import WORDS, saved

ORGAN, TURNS = Method(kind="organ", spans=((2, 4),)), Method(kind="organ", spans=((3, 4), (0, 1)))
LORA, FULL, NORMS = Method(kind="lora", rank=2), Method(kind="full"), Method(kind="norms")
TINY = Size(batch_tokens=20, steps=(2, 4), sweep_steps=4, seeds=(0, 1), most_rates=2, repeats=1)


def sentences(count: int, *, first: int = 0) -> tuple[str, ...]:
    """Sentences that repeat themselves, so that there is something to learn."""
    return tuple(" ".join(WORDS[(i * 7 + j) % 12] for j in range(4 + i % 5)) for i in range(first, first + count))


def some_texts() -> Texts:
    return split_texts("made up", train=sentences(40), held_out=sentences(9, first=40), source="nobody")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(saved(tiny_llama(), tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize(
    ("method", "learns"),
    [
        (ORGAN, lambda name: ".layers.2." in name or ".layers.3." in name),
        (TURNS, lambda name: ".layers.3." in name or ".layers.0." in name),
        (LORA, lambda name: ".lora_" in name),
        (NORMS, lambda name: "norm" in name),
        (FULL, lambda name: True),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_a_method_changes_the_weights_that_it_names_and_no_others(
    base: Base, method: Method, learns: Callable[[str], bool]
) -> None:
    learner = Learner(base, method, bfloat16=False)
    before = {name: weight.detach().clone() for name, weight in learner.weights().items()}
    data = tokenise(load_tokenizer(base), sentences(12), max_tokens=64)
    curve = teach(learner, data, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]], lr=1e-2)
    assert len(curve) == 4
    changed = {name for name, weight in learner.weights().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if learns(name)}
    assert learner.learns() == sum(before[name].numel() for name in changed)


def test_what_full_fine_tuning_measures_is_what_it_learns_from(base: Base) -> None:
    """The chunked head loss of the measurement and the plain one of the training agree."""
    learner, data = Learner(base, FULL), tokenise(load_tokenizer(base), sentences(6), max_tokens=64)
    plain = learner.losses(data, range(6), bfloat16=False)
    with torch.no_grad():
        assert torch.allclose(learner.losses(data, range(6), bfloat16=False), plain, atol=1e-5)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs jobs here (a process for each takes longer than all the rest); says which ran."""
    ran: list[str] = []

    def here(work: Callable[..., Any], *arguments: object) -> object:
        ran.append(work.__name__)
        return json.loads(json.dumps(work(*arguments)))

    monkeypatch.setattr(organ, "_alone", here)
    return ran


def test_a_finished_comparison_has_every_method_and_runs_nothing_a_second_time(
    base: Base, tmp_path: Path, in_this_process: list[str]
) -> None:
    methods, out = [ORGAN, LORA, FULL], tmp_path / "bench.json"
    result = bench_organ(base, texts=some_texts(), methods=methods, size=TINY, out=out)
    assert {(row["name"], row["steps"]) for row in result["rows"]} == {(m.name, n) for m in methods for n in (2, 4)}
    for row in result["rows"]:
        assert row["spread"][0] <= row["perplexity"] <= row["spread"][1]
        assert row["lr"] in row["tried"]
        assert row["seeds"] == ([0, 1] if row["steps"] == 4 else [0])
        assert row["cpu_seconds"] == row["steps"] * row["step_cpu_seconds"]["median"]
    first = list(in_this_process)
    assert first.count("train_alone") == 3 * (2 + 1 + 1)  # two rates, the other length, the other seed
    assert bench_organ(base, texts=some_texts(), methods=methods, size=TINY, out=out)["rows"] == result["rows"]
    assert in_this_process == first
    assert "full fine-tuning" in table(result)
    organ_picture(result, out=tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="another"):
        bench_organ(base, texts=pooled("other", {"a": some_texts()}), methods=methods, size=TINY, out=out)


def test_too_few_records_for_one_pass_are_refused(base: Base, tmp_path: Path, in_this_process: list[str]) -> None:
    few = split_texts("few", train=sentences(4), held_out=sentences(3), source="nobody")
    with pytest.raises(InputError, match="records for"):
        bench_organ(base, texts=few, methods=[ORGAN], size=TINY, out=tmp_path / "bench.json")


def _row(kind: str, cpu_seconds: float, perplexity: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": kind,
        "steps": 1,
        "cpu_seconds": cpu_seconds,
        "perplexity": perplexity,
        "validation": perplexity,
    }


def test_a_budget_counts_only_what_is_done_in_time() -> None:
    rows = [_row("lora", 10, 30.0), _row("lora", 20, 25.0), _row("organ", 11, 20.0), _row("organ", 21, 10.0)]
    found = budgets(rows)
    assert [(b["lora"]["perplexity"], b["organ"] and b["organ"]["perplexity"]) for b in found] == [(30, None), (25, 20)]
    said = conclusion({"budgets": found, "texts": "made up", "base": {"test": {"value": 40.0}}})
    assert said.startswith("at 1 of 2 times")


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after hours, with nothing printed."""

    def find_base(*_: object, **__: object) -> Base:
        raise AssertionError("it began")

    monkeypatch.setattr(bases, "find_base", find_base)
    monkeypatch.setattr(organ_texts, "of_corpus", find_base)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("sys.argv", ["not-fed", "bench", "organ", "--picture", "x.png"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == InputError.exit_code


def test_the_frontier_leaves_out_what_a_cheaper_row_beats() -> None:
    rows = [_row("organ", 3, 7.0), _row("organ", 1, 9.0), _row("organ", 2, 9.5)]
    assert frontier(rows, "cpu_seconds") == [(1, 9.0), (3, 7.0)]


def test_the_spans_of_a_comparison_lie_within_the_model() -> None:
    for layers in (1, 2, 4, 12, 22, 30, 48):
        for method in methods_for(layers, quick=False):
            assert all(0 <= start < stop <= layers for start, stop in method.spans)
