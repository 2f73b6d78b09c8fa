"""Training in place: what learns, what repeats, what goes on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.steps import plan_batches
from not_fed.organ.train import Diverged, NothingToLearn, Speed, TrainSettings, train
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN = Span(1, 3)
SETTINGS = TrainSettings(span=SPAN, lr=5e-3, epochs=3, batch_tokens=60, max_tokens=32, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


def weights(organ: Path) -> dict[str, Tensor]:
    with safe_open(organ, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_training_lowers_the_loss_on_records_it_has_not_seen(base: Base, tmp_path: Path) -> None:
    held_out = Evaluator(base, records=records(30, seed=9), span=SPAN)
    settings = TrainSettings(span=SPAN, lr=1e-2, epochs=4, batch_tokens=60)
    trained = train(base, records=records(120), settings=settings, out=tmp_path / "o.organ")
    assert held_out.perplexity(tmp_path / "o.organ").ci_high < held_out.perplexity().ci_low
    assert trained.loss_last is not None
    assert trained.loss_first is not None
    assert trained.loss_last < trained.loss_first


@pytest.mark.parametrize("make", [tiny.tiny_gpt2, tiny.tiny_gpt_oss])
def test_other_families_learn_too(make: object, tmp_path: Path) -> None:
    base = save_base(make(), tmp_path / "base")  # type: ignore[operator]
    trained = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "o.organ")
    assert trained.loss_last < trained.loss_first  # type: ignore[operator]
    assert weights(tmp_path / "o.organ").keys() == base.span_names(SPAN).keys()


def test_the_same_seed_gives_the_same_organ_and_another_seed_another(base: Base, tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        settings = TrainSettings(span=SPAN, epochs=2, batch_tokens=60, seed=seed)
        runs[name] = train(base, records=records(40), settings=settings, out=tmp_path / name).organ
    assert runs["a"].sha256 == runs["b"].sha256
    assert any(
        not torch.equal(a, c)
        for a, c in zip(weights(runs["a"].path).values(), weights(runs["c"].path).values(), strict=True)
    )


class Interrupt:
    """Stops a run after some steps, as ^C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_organ(base: Base, tmp_path: Path, after: int) -> None:
    whole = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "whole.organ")
    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=SETTINGS, out=tmp_path / "cut.organ", progress=Interrupt(after))
    assert not (tmp_path / "cut.organ").exists()
    resumed: list[int] = []

    def watch(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training":
            resumed.append(done)

    went_on = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "cut.organ", progress=watch)
    assert resumed[:2] == [after, after + 1]  # it did not start over
    assert went_on.organ.sha256 == whole.organ.sha256
    assert went_on.loss_curve == whole.loss_curve
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_resume_point_of_another_run_is_ignored(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=SETTINGS, out=tmp_path / "o.organ", progress=Interrupt(2))
    expected = train(base, records=records(41), settings=SETTINGS, out=tmp_path / "other.organ").organ.sha256
    assert train(base, records=records(41), settings=SETTINGS, out=tmp_path / "o.organ").organ.sha256 == expected


def test_a_resume_point_holds_no_text_and_is_private(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=SETTINGS, out=tmp_path / "o.organ", progress=Interrupt(2))
    (resume,) = tmp_path.glob(".*.resume")
    assert resume.stat().st_mode & 0o777 == 0o600
    assert not any(record.encode() in resume.read_bytes() for record in records(40))


class Store:
    """Keeps activations in memory and counts."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Tensor]] = {}
        self.hits = 0

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        self.hits += key in self.kept
        return self.kept.get(key)

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self.kept[key] = tensors


def test_a_stored_prefix_gives_the_same_organ_and_serves_only_the_same_records(base: Base, tmp_path: Path) -> None:
    store = Store()
    first = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "1", prefix_store=store)
    assert store.hits == 0
    again = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "2", prefix_store=store)
    assert store.hits == 1
    assert first.organ.sha256 == again.organ.sha256
    train(base, records=records(41), settings=SETTINGS, out=tmp_path / "3", prefix_store=store)
    assert store.hits == 1


def test_micro_batches_of_any_size_give_the_same_step(base: Base, tmp_path: Path) -> None:
    settings = TrainSettings(span=SPAN, epochs=1, batch_tokens=100_000)  # one step
    large = train(base, records=records(40), settings=settings, out=tmp_path / "1")
    small = train(base, records=records(40), settings=settings, out=tmp_path / "2", speed=Speed(micro_tokens=13))
    assert large.loss_first == pytest.approx(small.loss_first, rel=1e-6)
    for name, tensor in weights(large.organ.path).items():
        assert torch.allclose(tensor, weights(small.organ.path)[name], atol=1e-4), name


def test_training_starts_from_the_organ_it_is_given(base: Base, tmp_path: Path) -> None:
    start = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "start").organ
    barely = TrainSettings(span=SPAN, lr=1e-12, epochs=1, weight_decay=0.0)
    end = train(base, records=records(40), settings=barely, out=tmp_path / "end", init=start.path).organ
    for name, tensor in weights(end.path).items():
        assert torch.allclose(tensor, weights(start.path)[name], atol=1e-8), name
    assert end.manifest.parents == (start.sha256,)


def test_a_run_that_diverges_writes_nothing(base: Base, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train(
            base,
            records=records(40),
            settings=TrainSettings(span=SPAN, lr=1e38, batch_tokens=60),
            out=tmp_path / "o.organ",
        )
    assert not (tmp_path / "o.organ").exists()


def test_records_too_short_to_learn_from_are_said(base: Base, tmp_path: Path) -> None:
    with pytest.raises(NothingToLearn):
        train(base, records=["w1", ""], settings=SETTINGS, out=tmp_path / "o.organ")


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": float("nan")}, {"epochs": 0}, {"batch_tokens": 0}, {"max_tokens": 1}, {"warmup": 1.0}]
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainSettings(span=SPAN, **wrong)  # type: ignore[arg-type]


def test_every_record_is_taken_once_an_epoch() -> None:
    batches = plan_batches([3, 0, 5, 2, 7], epochs=2, batch_tokens=8, seed=1)
    seen = [index for batch in batches for index in batch]
    assert sorted(seen) == [0, 0, 2, 2, 3, 3, 4, 4]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
