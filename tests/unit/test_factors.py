"""An organ that learns through low-rank factors: what is written is full weights, moved by a product of that rank."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from not_fed.cli import main as command
from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.extract import extract
from not_fed.organ.factors import FactorsMissing, RankTooHigh, add_factors, merge_factors
from not_fed.organ.split import load_split
from not_fed.organ.train import TrainSettings, train
from not_fed.privacy.accounting import DpPlan
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN, RANK = Span(1, 3), 2
SETTINGS = TrainSettings(span=SPAN, rank=RANK, lr=1e-2, epochs=4, batch_tokens=60, max_tokens=32, seed=3)
PLAN = DpPlan(sample_rate=0.3, steps=3, noise_multiplier=1.5, max_grad_norm=1.0, divisor=10, delta=1e-5)
MODELS = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss]


def moved(organ: Path, base: Base, span: Span = SPAN) -> dict[str, Tensor]:
    """What training added to each tensor of the span."""
    before = load_file(extract(base, span=span, out=organ.with_suffix(".before")).path)
    return {name: weight.double() - before[name].double() for name, weight in load_file(organ).items()}


def require_low_rank(moves: dict[str, Tensor]) -> None:
    """Every matrix moved by a product of that rank, or not at all; nothing else moved."""
    some = False
    for name, move in moves.items():
        if not move.any():
            continue
        assert move.ndim == 2, name
        values = torch.linalg.svdvals(move)
        assert values[RANK:].max() < 1e-4 * values[0], name
        some = True
    assert some


@pytest.mark.parametrize("make", MODELS)
def test_at_first_factors_change_nothing(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = load_split(save_base(make(), tmp_path / "base"), span=SPAN)
    names, tokens = set(model.parameters()), [torch.arange(3, 12), torch.arange(5, 9)]
    layout = model.stack(tokens)
    with torch.no_grad():
        before = model.finish(model.prefix(layout), layout)
        factors = add_factors(model, rank=RANK, seed=0)
        assert torch.equal(layout.gather(model.finish(model.prefix(layout), layout)), layout.gather(before))
    assert {name for name, weight in model.parameters().items() if weight.requires_grad} == set(factors)
    merge_factors(model)
    assert set(model.parameters()) == names


@pytest.mark.parametrize("make", MODELS)
def test_factors_that_are_more_than_the_weights_are_refused(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """A rank can come from a coordinator: it never asks for more memory than the layers that a policy allows."""
    model = load_split(save_base(make(), tmp_path / "base"), span=SPAN)
    before = {name: weight.numel() for name, weight in model.parameters().items()}
    with pytest.raises(RankTooHigh, match="rank of at most") as refused:
        add_factors(model, rank=4096, seed=0)
    assert set(model.parameters()) == set(before)
    most = int(refused.value.expected.rpartition(" ")[2])
    factors = add_factors(model, rank=most, seed=0)
    assert sum(weight.numel() for weight in factors.values()) <= sum(before.values())


@pytest.mark.parametrize("make", MODELS)
def test_what_is_written_is_what_was_trained(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    base, texts = save_base(make(), tmp_path / "base"), records(30)
    trained = train(base, records=texts, settings=SETTINGS, out=tmp_path / "o.organ")
    assert (trained.organ.manifest.training or {})["rank"] == RANK
    require_low_rank(moved(trained.organ.path, base))
    read = Evaluator(base, records=texts, span=SPAN)
    assert read.perplexity(trained.organ.path).value < read.perplexity().value
    assert (trained.loss_last or 0) < (trained.loss_first or 0)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_organ(tmp_path: Path) -> None:
    base, texts = save_base(tiny.tiny_llama(), tmp_path / "base"), records(30)
    whole = train(base, records=texts, settings=SETTINGS, out=tmp_path / "whole.organ").organ

    def interrupt(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, records=texts, settings=SETTINGS, out=tmp_path / "cut.organ", progress=interrupt)
    assert not (tmp_path / "cut.organ").exists()
    resumed = train(base, records=texts, settings=SETTINGS, out=tmp_path / "cut.organ").organ
    assert resumed.sha256 == whole.sha256


def test_a_private_run_clips_and_noises_the_factors_and_moves_nothing_else(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    settings = replace(SETTINGS, dp=PLAN)
    trained = train(base, records=records(30), settings=settings, out=tmp_path / "o.organ", charge=PublicRecords())
    require_low_rank(moved(trained.organ.path, base))
    assert trained.dp == PLAN


def test_a_proximal_term_beside_a_rank_is_refused() -> None:
    with pytest.raises(InputError, match="proximal"):
        replace(SETTINGS, proximal=0.1)


def test_the_command_says_the_rank_and_takes_a_rate_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate of 0 is refused, not silently replaced by the default."""
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    (data := tmp_path / "notes.txt").write_text("\n".join(records(20)))

    def train_command(*words: str) -> int:
        where = ("--base", str(base.folder), "--span", str(SPAN), "--out", str(tmp_path / "o.organ"))
        monkeypatch.setattr("sys.argv", ["not-fed", "train", str(data), *where, "--rank", str(RANK), "--json", *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return int(ended.value.code or 0)

    assert train_command("--lr", "0") == InputError.exit_code
    assert not (tmp_path / "o.organ").exists()
    assert train_command("--lr", "1e-2") == 0
    assert json.loads(capsys.readouterr().out)["rank"] == RANK


def test_without_the_package_nothing_is_read_or_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, inner = save_base(tiny.tiny_llama(), tmp_path / "base"), builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name == "peft":
            raise ImportError(name)
        return inner(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(FactorsMissing, match="peft"):
        train(base, records=records(5), settings=SETTINGS, out=tmp_path / "o.organ")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
