"""A sweep gives each span what `train` would, on one model in memory, and recommends one by a rule of one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from not_fed.bench import sweep as module
from not_fed.bench.sweep import NextCommand, NoSpanInside, SweepSettings, plan_spans, share_out, sweep
from not_fed.bench.sweep_choice import BUDGET, KNEE, NO_LIMITS, Limits, recommend, table
from not_fed.bench.sweep_picture import conclusion, sweep_picture
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.prefix import advance_prefix, compute_prefix, tokenise
from not_fed.organ.split import SplitModel, load_split, load_tokenizer
from not_fed.organ.train import NothingToLearn, TrainSettings, train
from tests.support import tiny
from tests.support.folders import records, save_base

TRAIN, HELD_OUT = records(40), records(15, seed=9)
SPANS = (Span(0, 1), Span(0, 2), Span(1, 3), Span(1, 4), Span(3, 4))
SETTINGS = SweepSettings(spans=SPANS, lrs=(5e-3,), batch_tokens=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def swept(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole sweep: every span at two rates."""
    out = tmp_path_factory.mktemp("swept") / "result.json"
    settings = replace(SETTINGS, lrs=(5e-3, 1e-6))
    command = NextCommand(data="my notes.txt", base="base", options=("--batch-tokens", "60"))
    return sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=out, command=command)


def rowed(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"{}:{}".format(*row["span"]): row for row in result["rows"]}


@pytest.mark.parametrize("make", [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss])
def test_a_prefix_moved_on_is_the_prefix_computed_from_the_tokens(make: Any, tmp_path: Path) -> None:  # noqa: ANN401
    base = save_base(make(), tmp_path / "base")
    model = load_split(base, span=Span(0, 1))
    tokens = tokenise(load_tokenizer(base), records(12), max_tokens=32)

    def fresh(start: int) -> torch.Tensor:
        cut = model.at(Span(start, start + 1))
        return compute_prefix(cut, tokens, key="", micro_tokens=50, store=None).rows(range(12))

    cut = model.at(Span(0, 1))
    cache = compute_prefix(cut, tokens, key="", micro_tokens=50, store=None)
    for to in (0, 1, 3):
        cache = advance_prefix(cut, tokens, cache, to=to, micro_tokens=50)
        cut = model.at(Span(to, to + 1))
        torch.testing.assert_close(cache.rows(range(12)), fresh(to), rtol=1e-5, atol=1e-6)


def test_a_layer_below_runs_once_for_all_spans(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest layer is passed by each record once, however many starts lie above it."""
    passed = []

    def counted(*args: Any, **kwargs: Any) -> SplitModel:  # noqa: ANN401
        split = load_split(*args, **kwargs)
        split.span_layers[0].register_forward_pre_hook(lambda *_: passed.append(1))
        return split

    monkeypatch.setattr(module, "load_split", counted)
    settings = replace(SETTINGS, spans=(Span(1, 2), Span(2, 3), Span(3, 4)), steps=1)
    sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=tmp_path / "r.json")
    assert len(passed) == 2  # the records to train on, and those to measure on: one micro-batch each


def test_a_row_is_what_train_and_evaluate_give(swept: dict[str, Any], base: Base, tmp_path: Path) -> None:
    for name, row in rowed(swept).items():
        span = Span.parse(name)
        settings = TrainSettings(span=span, lr=5e-3, batch_tokens=60)
        trained = train(base, records=TRAIN, settings=settings, out=tmp_path / f"{span.start}-{span.stop}.organ")
        measured = Evaluator(base, records=HELD_OUT, span=span).perplexity(trained.organ.path)
        assert [row["perplexity"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [measured.value, measured.ci_low, measured.ci_high], rel=1e-6
        )
        assert [row["loss_first"], row["loss_last"]] == pytest.approx([trained.loss_first, trained.loss_last], rel=1e-6)
        assert row["parameters"] == trained.organ.parameters
        assert 0 < trained.organ.size_bytes - row["size_bytes"] < 20_000  # the header
        assert swept["steps"] == trained.steps
        assert swept["tokens"] == trained.tokens
    assert swept["base_perplexity"]["value"] == pytest.approx(
        Evaluator(base, records=HELD_OUT, span=Span(0, 1)).perplexity().value, rel=1e-6
    )


def test_the_base_is_put_back_after_each_span(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []

    def kept(*args: Any, **kwargs: Any) -> SplitModel:  # noqa: ANN401
        models.append(load_split(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr(module, "load_split", kept)
    sweep(base, train=TRAIN, held_out=HELD_OUT, settings=replace(SETTINGS, steps=2), out=tmp_path / "r.json")
    (after,), before = models, load_split(base, span=Span(0, 1))
    for weight, own in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(weight, own)
        assert not weight.requires_grad
        assert weight.grad is None


def test_of_several_rates_the_best_counts_and_all_are_shown(swept: dict[str, Any]) -> None:
    for row in swept["rows"]:
        assert [one["lr"] for one in row["tried"]] == [5e-3, 1e-6]
        assert row["lr"] == 5e-3
        assert row["perplexity"] == row["tried"][0]["perplexity"] < row["tried"][1]["perplexity"]
    assert "0.005 of 0.005, 1e-06" in table(swept)


def test_the_papers_span_has_its_row_and_its_mark(swept: dict[str, Any]) -> None:
    assert [name for name, row in rowed(swept).items() if row["paper"]] == ["1:4"]
    assert Span(10, 13) in plan_spans(30, lengths=[1], starts=[0])


def test_spans_are_where_they_were_asked_for_and_inside() -> None:
    assert [str(span) for span in plan_spans(30, lengths=[3], every=12)] == ["0:3", "10:13", "12:15", "24:27", "27:30"]
    assert [str(span) for span in plan_spans(30, lengths=[1, 6], starts=[0, 28])] == ["0:1", "0:6", "10:13", "28:29"]
    assert len(plan_spans(30, lengths=[1])) == 8 + 1 + 1  # every four layers, the last, the paper's
    with pytest.raises(NoSpanInside):
        plan_spans(4, lengths=[5])


def test_a_second_call_goes_on_and_trains_only_what_is_left(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "result.json", replace(SETTINGS, steps=2)

    def interrupt(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "spans" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=out, progress=interrupt)
    first = json.loads(out.read_text())["trials"]
    result = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=out)
    whole = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=tmp_path / "whole.json")
    assert len(first) == 3
    assert {key: result["trials"][key] for key in first} == first
    for name, row in rowed(result).items():
        assert row["perplexity"] == pytest.approx(rowed(whole)[name]["perplexity"], rel=1e-6)
    monkeypatch.setattr(module, "load_split", None)  # nothing is left: no model is loaded
    assert sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=out)["rows"] == result["rows"]


@pytest.mark.parametrize(
    "other", [{"steps": 2}, {"seed": 1}, {"batch_tokens": 61}, {"max_tokens": 11}], ids=lambda other: next(iter(other))
)
def test_the_file_of_another_sweep_is_refused(
    swept: dict[str, Any], base: Base, tmp_path: Path, other: dict[str, int]
) -> None:
    out = tmp_path / "result.json"
    out.write_text(json.dumps(swept))
    with pytest.raises(InputError):
        sweep(base, train=TRAIN, held_out=HELD_OUT, settings=replace(SETTINGS, **other), out=out)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        sweep(base, train=TRAIN[1:], held_out=HELD_OUT, settings=SETTINGS, out=out)
    with pytest.raises(InputError):
        sweep(base, train=TRAIN, held_out=HELD_OUT[1:], settings=SETTINGS, out=out)
    assert json.loads(out.read_text()) == swept


def test_more_spans_and_rates_join_those_that_the_file_holds(base: Base, tmp_path: Path) -> None:
    out, few = tmp_path / "result.json", replace(SETTINGS, spans=(Span(0, 1), Span(3, 4)), steps=1)
    sweep(base, train=TRAIN, held_out=HELD_OUT, settings=few, out=out)
    other = replace(few, spans=(Span(3, 4), Span(2, 4)), lrs=(1e-3,))
    found = rowed(sweep(base, train=TRAIN, held_out=HELD_OUT, settings=other, out=out))
    rates = {name: [one["lr"] for one in row["tried"]] for name, row in found.items()}
    assert rates == {"0:1": [5e-3], "2:4": [1e-3], "3:4": [5e-3, 1e-3]}


def test_nothing_to_train_on_or_to_measure_is_refused(base: Base, tmp_path: Path) -> None:
    for given, held_out in ((["w1"], HELD_OUT), (TRAIN, ["w1"])):
        with pytest.raises(NothingToLearn):
            sweep(base, train=given, held_out=held_out, settings=SETTINGS, out=tmp_path / "r.json")
    with pytest.raises(InputError):
        sweep(base, train=TRAIN, held_out=HELD_OUT, settings=replace(SETTINGS, lrs=(-1.0,)), out=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_a_span_that_diverges_is_shown_and_never_recommended(base: Base, tmp_path: Path) -> None:
    settings = replace(SETTINGS, spans=(Span(0, 1),), lrs=(1e30,), steps=3)
    result = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=tmp_path / "r.json")
    assert result["rows"][0]["perplexity"] is None
    assert result["recommended"]["span"] is None
    assert "diverged" in table(result)
    assert sweep_picture(result).startswith(b"\x89PNG")


ROWS = [
    {"span": [start, start + length], "perplexity": read, "seconds": seconds, "size_bytes": length * 1_000_000}
    for start, length, read, seconds in ((0, 1, 30.0, 50.0), (4, 1, 60.0, 10.0), (0, 3, 20.0, 90.0), (2, 3, 21.0, 60.0))
]


@pytest.mark.parametrize(
    ("limits", "span"),
    [
        (Limits(seconds=100), [0, 3]),
        (Limits(seconds=60), [2, 5]),
        (Limits(seconds=100, size_bytes=1_000_000), [0, 1]),
        (Limits(seconds=20, size_bytes=1_000_000), [4, 5]),
        (Limits(seconds=9), None),
        (Limits(size_bytes=999_999), None),
    ],
    ids=str,
)
def test_a_budget_gets_the_lowest_perplexity_within_it(limits: Limits, span: list[int] | None) -> None:
    choice = recommend(ROWS, base_perplexity=70.0, limits=limits)
    assert (choice.row and choice.row["span"]) == span
    assert choice.rule == BUDGET
    assert (str(limits) in choice.why) is True


def test_without_a_budget_the_quickest_span_with_most_of_the_gain_is_recommended() -> None:
    choice = recommend(ROWS, base_perplexity=70.0, limits=NO_LIMITS)
    assert choice.row is ROWS[3]  # ln(70/21) is 96 % of ln(70/20); ln(70/30) is 68 %
    assert choice.rule == KNEE
    assert "96%" in choice.why
    assert recommend(ROWS[:3], base_perplexity=70.0, limits=NO_LIMITS).row is ROWS[2]
    assert recommend(ROWS, base_perplexity=19.0, limits=NO_LIMITS).row is None


def test_the_next_command_trains_what_is_recommended(swept: dict[str, Any]) -> None:
    chosen = next(row for row in swept["rows"] if row["recommended"])
    start, stop = swept["recommended"]["span"]
    assert chosen["span"] == [start, stop]
    assert swept["recommended"]["command"] == (
        f"not-fed train 'my notes.txt' --base base --span {start}:{stop} --lr 0.005 --batch-tokens 60 "
        f"--out span-{start}-{stop}.organ"
    )


def test_seconds_are_those_of_the_training_that_follows(base: Base, tmp_path: Path) -> None:
    """Two steps are measured; the command takes a pass over all records, the held-out ones too."""
    settings = replace(SETTINGS, spans=(Span(2, 3),), steps=2)
    command = NextCommand(data="d", base="b", takes_held_out=True)
    result = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=tmp_path / "r.json", command=command)
    row, whole = result["rows"][0], sum(len(text.split()) - 1 for text in [*TRAIN, *HELD_OUT])
    assert 2 * 60 <= result["tokens"] < whole
    assert row["seconds"] == pytest.approx(
        whole / result["tokens"] * (2 * row["step_seconds"] + row["prefix_seconds"]), rel=1e-9
    )


def test_more_steps_than_a_pass_go_over_the_records_again(base: Base, tmp_path: Path) -> None:
    settings = replace(SETTINGS, spans=(Span(2, 3),))
    once = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=settings, out=tmp_path / "a.json")
    twice = replace(settings, steps=2 * once["steps"])
    command = NextCommand(data="d", base="b")
    result = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=twice, out=tmp_path / "b.json", command=command)
    assert result["tokens"] == 2 * once["tokens"]
    assert "--epochs 2" in result["recommended"]["command"]
    little_more = replace(settings, steps=once["steps"] + 1)
    result = sweep(base, train=TRAIN, held_out=HELD_OUT, settings=little_more, out=tmp_path / "c.json", command=command)
    assert "--epochs" not in result["recommended"]["command"]


def test_people_and_equal_texts_are_never_on_both_sides() -> None:
    people = tuple(f"p{number // 3}" for number in range(60))
    texts = tuple(f"{number}" for number in range(60))
    given, held_out = share_out(Records(texts, people), share=0.2, seed=1)
    assert len(held_out) == 12
    assert {people[int(text)] for text in given} & {people[int(text)] for text in held_out} == set()
    given, held_out = share_out(Records(("a", "b") * 5), share=0.2, seed=1)
    assert (len(given), len(held_out)) == (5, 5)
    with pytest.raises(InputError):
        share_out(Records(("a", "a")), share=0.2, seed=1)


def test_the_picture_is_drawn_and_says_what_it_shows(swept: dict[str, Any]) -> None:
    assert sweep_picture(swept).startswith(b"\x89PNG")
    start, stop = swept["recommended"]["span"]
    assert f"Recommended: layers {start}:{stop}" in conclusion(swept)
    assert "the paper's" in conclusion(swept)
