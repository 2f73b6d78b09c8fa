"""Recovery: what heals, what stays as it was, what is measured, and the way back."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.evaluate import Evaluator, Perplexity
from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.organ.recover import (
    NothingToRecover,
    Recovered,
    RecoveredWorse,
    RecoverySettings,
    hold_out,
    plan_recovery,
    recover,
)
from not_fed.organ.recovery_record import is_recovered, last_put_in, undo_recovery
from not_fed.organ.train import CannotTrain, NothingToLearn, TrainSettings, train
from not_fed.organ.transplant import (
    ChangedSincePlan,
    NothingToUndo,
    UndoDiffers,
    apply_transplant,
    plan_transplant,
    undo_transplant,
)
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN = Span(1, 3)
SETTINGS = RecoverySettings(what="neighbours", lr=5e-3, steps=12, batch_tokens=60, max_tokens=32)
TEXTS = records(150)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """In bfloat16 and several shards, as real ones are; it has learnt to read."""
    folder = tmp_path_factory.mktemp("base")
    raw = save_base(tiny.tiny_llama(), folder / "raw")
    settings = TrainSettings(span=Span(0, 4), lr=1e-2, epochs=3, batch_tokens=120, max_tokens=32)
    organ = train(raw, records=records(200, seed=5), settings=settings, out=folder / "organ").organ
    model = tiny.tiny_llama()
    read = open_base(apply_transplant(plan_transplant(organ=organ, base=raw), out=folder / "read"))
    model = type(model).from_pretrained(read.folder, dtype=torch.bfloat16)
    return save_base(model, folder / "base", max_shard_size="20KB")


@pytest.fixture(scope="module")
def broken(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The base with two layers put in that never met it."""
    folder = tmp_path_factory.mktemp("broken")
    other = save_base(tiny.tiny_llama(seed=8).to(torch.bfloat16), folder / "other")
    extract(other, span=SPAN, out=folder / "organ")
    plan = plan_transplant(organ=read_organ(folder / "organ"), base=base, accept_different_base=True)
    return open_base(apply_transplant(plan, out=folder / "model"))


def contents(base: Base) -> dict[str, str]:
    return {name: hashlib.sha256(place.read()).hexdigest() for name, place in base.places.items()}


def changed(before: Base, after: Base) -> set[str]:
    one, other = contents(before), contents(after)
    assert one.keys() == other.keys()
    assert {name: place.dtype for name, place in before.places.items()} == {
        name: place.dtype for name, place in after.places.items()
    }
    return {name for name in one if one[name] != other[name]}


def layer_names(base: Base, *layers: int) -> set[str]:
    return {name for layer in layers for name in base.span_names(Span(layer, layer + 1)).values()}


NORMS = {
    *(f"model.layers.{layer}.{place}_layernorm.weight" for layer in range(4) for place in ("input", "post_attention")),
    "model.norm.weight",
}


@pytest.mark.parametrize(
    ("what", "learns"),
    [
        ("norms", lambda _: NORMS),
        ("neighbours", lambda base: layer_names(base, 0, 3)),
        ("organ", lambda base: layer_names(base, 1, 2)),
    ],
)
def test_a_recovery_touches_what_it_says_and_undo_gives_the_model_back(
    broken: Base, tmp_path: Path, what: str, learns: Callable[[Base], set[str]]
) -> None:
    plan = plan_recovery(broken, texts=TEXTS, settings=replace(SETTINGS, what=what))  # type: ignore[arg-type]
    found = recover(plan, out=tmp_path / "healed")
    healed = open_base(tmp_path / "healed")
    assert set(plan.tensors) == learns(broken)
    assert changed(broken, healed) == learns(broken)
    linked = [file.name for file in broken.folder.glob("*.safetensors") if file.samefile(healed.folder / file.name)]
    touched = {broken.places[name].file.name for name in plan.tensors}
    assert set(linked) == {file.name for file in broken.folder.glob("*.safetensors")} - touched
    assert found.after.value < found.before.value
    before = undo_recovery(tmp_path / "healed", out=tmp_path / "before")
    assert before == broken.sha256
    assert not changed(broken, open_base(tmp_path / "before"))


def test_what_is_said_is_what_the_written_model_reads(broken: Base, tmp_path: Path) -> None:
    """Before and after, on texts that no step took, with the weights as they were rounded into the file."""
    plan = plan_recovery(broken, texts=TEXTS, settings=SETTINGS)
    found = recover(plan, out=tmp_path / "healed")
    held = [TEXTS[i] for i in hold_out(TEXTS, [len(text.split()) - 1 for text in TEXTS])]
    assert len(held) == 15
    assert not {i for batch in plan.batches for i in batch} & {TEXTS.index(text) for text in held}
    for model, said in ((broken, found.before), (open_base(tmp_path / "healed"), found.after)):
        measured = Evaluator(model, records=held, span=Span(0, 1), max_tokens=32).perplexity()
        assert (said.value, said.tokens) == (pytest.approx(measured.value, rel=1e-5), measured.tokens)


def test_a_healed_model_is_healed_again_and_taken_back_step_by_step(base: Base, broken: Base, tmp_path: Path) -> None:
    """The transplant's own record survives both recoveries: neighbours are found, and undo reaches the base."""
    once = recover(plan_recovery(broken, texts=TEXTS, settings=SETTINGS), out=tmp_path / "once")
    first = open_base(once.out)
    assert list(last_put_in(first.folder)) == [SPAN]
    recover(plan_recovery(first, texts=TEXTS, settings=SETTINGS), out=tmp_path / "twice", keep_worse=True)
    undo_recovery(tmp_path / "twice", out=tmp_path / "back-1")
    assert is_recovered(tmp_path / "back-1")
    undo_recovery(tmp_path / "back-1", out=tmp_path / "back-2")
    assert not is_recovered(tmp_path / "back-2")
    assert undo_transplant(tmp_path / "back-2", out=tmp_path / "back-3") == base.sha256


def test_undo_refuses_a_recovered_model_that_was_changed_since(broken: Base, tmp_path: Path) -> None:
    recover(plan_recovery(broken, texts=TEXTS, settings=SETTINGS), out=tmp_path / "healed")
    place = open_base(tmp_path / "healed").places["model.embed_tokens.weight"]
    data = bytearray(place.file.read_bytes())
    data[place.begin] ^= 1
    place.file.unlink()  # it may be a hard link into the model before
    place.file.write_bytes(bytes(data))
    with pytest.raises(UndoDiffers):
        undo_recovery(tmp_path / "healed", out=tmp_path / "before")
    assert not (tmp_path / "before").exists()
    with pytest.raises(NothingToUndo):
        undo_recovery(broken.folder, out=tmp_path / "before")


def test_a_model_that_got_worse_is_not_written_unless_it_is_wanted(broken: Base, tmp_path: Path) -> None:
    """At a rate that no model survives."""
    harm = replace(SETTINGS, lr=0.3)
    plan = plan_recovery(broken, texts=TEXTS, settings=harm)
    with pytest.raises(RecoveredWorse):
        recover(plan, out=tmp_path / "worse")
    assert not any(tmp_path.iterdir())
    assert recover(plan, out=tmp_path / "worse", keep_worse=True).worse


def test_an_interrupted_recovery_leaves_nothing(broken: Base, tmp_path: Path) -> None:
    def stop(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(plan_recovery(broken, texts=TEXTS, settings=SETTINGS), out=tmp_path / "healed", progress=stop)
    assert not any(tmp_path.iterdir())


def test_a_model_whose_files_changed_after_the_plan_is_not_recovered(broken: Base, tmp_path: Path) -> None:
    copy = open_base(shutil.copytree(broken.folder, tmp_path / "copy"))
    plan = plan_recovery(copy, texts=TEXTS, settings=SETTINGS)
    os.utime(copy.places["model.norm.weight"].file, ns=(1, 1))
    with pytest.raises(ChangedSincePlan):
        recover(plan, out=tmp_path / "healed")
    assert not (tmp_path / "healed").exists()


def test_time_that_is_over_ends_a_recovery_with_what_it_has(broken: Base, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2000, max_seconds=0.3)
    found = recover(plan_recovery(broken, texts=TEXTS, settings=settings), out=tmp_path / "healed")
    assert 1 <= found.steps < 2000
    assert found.after.value < found.before.value


def test_the_held_out_tenth_depends_on_the_texts_alone() -> None:
    lengths = [len(text.split()) - 1 for text in TEXTS]
    held = {TEXTS[i] for i in hold_out(TEXTS, lengths)}
    again = [*TEXTS[::-1], *TEXTS[:40]]  # another order, and copies
    found = hold_out(again, [len(text.split()) - 1 for text in again])
    assert {again[i] for i in found} == held
    assert not {again[i] for i in set(range(len(again))) - set(found)} & held  # no copy is learnt


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"what": "neighbours", "layers": (Span(0, 4),)}, NothingToRecover),  # no layer is beside them
        ({"what": "norms", "layers": (SPAN,)}, InputError),
        ({"max_seconds": 0.0}, InputError),
        ({"steps": 0}, InputError),
    ],
)
def test_a_recovery_of_nothing_is_refused(broken: Base, wrong: dict[str, object], error: type[InputError]) -> None:
    with pytest.raises(error):
        plan_recovery(broken, texts=TEXTS, settings=RecoverySettings(**wrong))  # type: ignore[arg-type]


def test_without_a_record_the_layers_are_named_or_it_is_refused(base: Base) -> None:
    with pytest.raises(NothingToRecover):
        plan_recovery(base, texts=TEXTS, settings=SETTINGS)
    plan = plan_recovery(base, texts=TEXTS, settings=replace(SETTINGS, layers=(Span(0, 1), Span(2, 3))))
    assert set(plan.tensors) == layer_names(base, 1, 3)
    assert plan.cover == Span(1, 4)


def test_texts_too_few_to_hold_one_out_are_said(broken: Base) -> None:
    with pytest.raises(NothingToLearn):
        plan_recovery(broken, texts=["w1 w2 w3", "w1 w2 w3", "w4"], settings=SETTINGS)


@pytest.mark.parametrize(
    ("make", "norms"),
    [(tiny.tiny_gpt2, 2 * (2 * 4 + 1)), (tiny.tiny_qwen3, 4 * 4 + 1), (tiny.tiny_gemma3_with_vision, 6 * 4 + 1)],
)
def test_the_norms_of_other_families_are_found(make: Callable[[], PreTrainedModel], norms: int, tmp_path: Path) -> None:
    """GPT-2's have biases; Qwen3 has one more for queries and one for keys; beside Gemma 3's are those of a camera."""
    base = save_base(make(), tmp_path / "base")
    plan = plan_recovery(base, texts=TEXTS, settings=replace(SETTINGS, what="norms", steps=4))
    recover(plan, out=tmp_path / "healed", keep_worse=True)
    assert len(plan.tensors) == norms
    assert changed(base, open_base(tmp_path / "healed")) == set(plan.tensors)


def test_weights_in_a_format_that_is_not_written_back_are_refused(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_llama().to(torch.float64), tmp_path / "base")
    with pytest.raises(CannotTrain):
        plan_recovery(base, texts=TEXTS, settings=RecoverySettings())
    with pytest.raises(CannotTrain):
        train(base, records=TEXTS, settings=TrainSettings(span=SPAN), out=tmp_path / "o")


def test_a_model_that_gives_no_number_at_all_is_worse() -> None:
    before, after = (
        Perplexity(value=value, ci_low=value, ci_high=value, tokens=9, records=1, seconds=0.0)
        for value in (5.0, math.nan)
    )
    assert Recovered(out=Path("out"), steps=1, tokens=9, before=before, after=after, seconds=0.0).worse
