"""What an organ has learnt, added to a model that went its own way from the same base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from not_fed.organ.anatomy import BloodTypeDiffers, Span, SpanOutside
from not_fed.organ.body import SpansOverlap
from not_fed.organ.checkpoint import Base, Place, digest_tensors, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import OtherBase, ShapeDiffers
from not_fed.organ.organ import read_organ
from not_fed.organ.transplant import Delta, apply_transplant, delta, plan_body, plan_transplant, undo_transplant
from not_fed.organ.transplant.delta import (
    DeltaOverflows,
    MergerMissing,
    NoArithmetic,
    NothingLearned,
    changed_blocks,
)
from not_fed.organ.transplant.ways import BadScale
from not_fed.organ.writing import write_safetensors
from tests.support import tiny
from tests.support.folders import save_base
from tests.support.learnt import fine_tuned, learnt_organ, span_tensors, tensors_of

SPAN = Span(1, 3)
MODELS = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss, tiny.tiny_gemma2]
NAMES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUMBERS = arrays(np.float32, 8, elements=floats(-65504, 65504, width=32))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers")


def place(numbers: torch.Tensor, name: str, folder: Path) -> Place:
    """A tensor as it lies in a file."""
    dtype = next(key for key, value in NAMES.items() if value == numbers.dtype)
    data = numbers.contiguous().view(torch.uint8).numpy().tobytes()
    (folder / name).write_bytes(data)
    return Place(folder / name, dtype, tuple(numbers.shape), 0, len(data))


def moved(recipient: torch.Tensor, before: torch.Tensor, after: torch.Tensor, way: Delta, folder: Path) -> bytes:
    change = place(after, "after", folder), place(before, "before", folder)
    return b"".join(changed_blocks(place(recipient, "recipient", folder), [change], way=way))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(before=NUMBERS, after=NUMBERS)
def test_a_change_added_to_what_it_was_taken_from_is_the_organ(
    name: str, base: Base, scratch: Path, before: NDArray[np.float32], after: NDArray[np.float32]
) -> None:
    """In every format, for all numbers, and not only where float64 happens to be exact."""
    old, new = (torch.from_numpy(numbers).to(NAMES[name]) for numbers in (before, after))
    got = moved(old, old, new, Delta(origin=base), scratch)
    assert got == new.view(torch.uint8).numpy().tobytes()


def test_plain_arithmetic_would_not_give_the_organ_back() -> None:
    """Why the rule above is in the code: a + (b - a) is not b, in float32 and in float64."""
    before, after = torch.tensor([1.0]), torch.tensor([2.0**-60])
    assert before + (after - before) != after
    assert (before.double() + (after.double() - before.double())).float() != after


@settings(max_examples=60, deadline=None)
@given(recipient=NUMBERS, before=NUMBERS, scale=floats(-4, 4))
def test_a_number_that_training_left_alone_keeps_its_bits(
    base: Base, scratch: Path, recipient: NDArray[np.float32], before: NDArray[np.float32], scale: float
) -> None:
    now, old = torch.from_numpy(recipient), torch.from_numpy(before)
    got = moved(now, old, old, Delta(origin=base, scale=scale), scratch)
    assert got == recipient.tobytes()  # -0.0 too


def test_a_tensor_of_many_blocks_is_the_same_as_in_one_piece(
    base: Base, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = torch.Generator().manual_seed(0)
    now, old, new = (torch.randn(1000, generator=source) for _ in range(3))
    whole = moved(now, old, new, Delta(origin=base, scale=0.3), scratch)
    monkeypatch.setattr(delta, "_CHUNK", 7)
    assert moved(now, old, new, Delta(origin=base, scale=0.3), scratch) == whole


@pytest.mark.parametrize("make", MODELS)
def test_a_fine_tuned_model_gets_what_the_organ_has_learnt(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    base = save_base(make(), tmp_path / "base", max_shard_size="20KB")
    recipient = fine_tuned(base, tmp_path / "recipient")
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    plan = plan_transplant(organ=organ, base=recipient, way=Delta(origin=base, scale=0.5))
    assert (plan.exact, plan.layers, plan.inserted) == (False, 4, frozenset())
    out = open_base(apply_transplant(plan, out=tmp_path / "new"))
    given, before = span_tensors(open_base(base.folder), SPAN), span_tensors(recipient, SPAN)
    from safetensors.torch import load_file

    learnt = load_file(organ.path)
    for name, tensor in span_tensors(out, SPAN).items():
        expected = before[name].double() + 0.5 * (learnt[name].double() - given[name].double())
        assert torch.equal(tensor, expected.float()), name
    old, new = tensors_of(recipient.folder), tensors_of(out.folder)
    assert all(torch.equal(new[name], old[name]) for name in old.keys() - plan.replaced)
    assert undo_transplant(out.folder, out=tmp_path / "undone") == recipient.sha256
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(out.folder)(torch.tensor([[5, 6, 7]])).logits).all()


def test_a_delta_on_its_own_base_is_the_replaced_organ(base: Base, tmp_path: Path) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    plan = plan_transplant(organ=organ, base=base, way=Delta(origin=base))
    assert plan.exact
    added = open_base(apply_transplant(plan, out=tmp_path / "added"))
    replaced = open_base(apply_transplant(plan_transplant(organ=organ, base=base), out=tmp_path / "replaced"))
    assert added.sha256 == replaced.sha256 != base.sha256
    taken_away = plan_transplant(organ=organ, base=added, way=Delta(origin=base, scale=-1.0))
    back = open_base(apply_transplant(taken_away, out=tmp_path / "back"))
    for name, tensor in span_tensors(back, SPAN).items():
        torch.testing.assert_close(tensor, span_tensors(base, SPAN)[name], rtol=0, atol=1e-7)


def test_the_result_has_the_number_format_of_the_model_it_goes_into(base: Base, tmp_path: Path) -> None:
    recipient = fine_tuned(base, tmp_path / "recipient", dtype=torch.bfloat16)
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    with pytest.raises(ShapeDiffers, match="BF16"):
        plan_transplant(organ=organ, base=recipient, accept_different_base=True)  # control: replacing does not fit
    out = apply_transplant(plan_transplant(organ=organ, base=recipient, way=Delta(origin=base)), out=tmp_path / "new")
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {torch.bfloat16}
    assert open_base(out).sha256 != recipient.sha256


def test_a_change_that_does_not_fit_is_refused_in_the_plan(base: Base, tmp_path: Path) -> None:
    recipient = fine_tuned(base, tmp_path / "recipient")
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    other = save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    found = other.span_sha256(SPAN)
    with pytest.raises(OtherBase, match=rf"{organ.manifest.span_sha256}.*{found}") as error:
        plan_transplant(organ=organ, base=recipient, way=Delta(origin=other))
    assert base.sha256 in error.value.hint
    with pytest.raises(BloodTypeDiffers, match="family"):
        gpt2 = save_base(tiny.tiny_gpt2(), tmp_path / "gpt2")
        plan_transplant(organ=organ, base=gpt2, way=Delta(origin=base))
    with pytest.raises(SpanOutside):
        plan_transplant(organ=organ, base=recipient, at=3, way=Delta(origin=base))
    with pytest.raises(BadScale):
        Delta(origin=base, scale=float("nan"))
    assert plan_transplant(organ=organ, base=recipient, way=Delta(origin=base)).replaced  # control


def test_an_organ_that_never_learnt_has_nothing_to_add(base: Base, tmp_path: Path) -> None:
    untouched = extract(base, span=SPAN, out=tmp_path / "untouched")
    with pytest.raises(NothingLearned):
        plan_transplant(organ=untouched, base=base, way=Delta(origin=base))
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    with organ.path.open("r+b") as file:  # it says that it was trained, and holds what it was cut as
        for name, tensor in untouched.places.items():
            file.seek(organ.places[name].begin)
            file.write(tensor.read())
    assert digest_tensors(organ.places) == organ.manifest.span_sha256
    with pytest.raises(NothingLearned):
        plan_transplant(organ=organ, base=base, way=Delta(origin=base))


def test_numbers_that_cannot_be_added_are_refused(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    monkeypatch.delitem(delta._FLOATS, "F32")  # as if they were packed
    with pytest.raises(NoArithmetic, match="F32"):
        plan_transplant(organ=organ, base=base, way=Delta(origin=base))


def test_a_change_that_leaves_the_format_writes_nothing(base: Base, tmp_path: Path) -> None:
    recipient = fine_tuned(base, tmp_path / "recipient", dtype=torch.float16)
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    plan = plan_transplant(organ=organ, base=recipient, way=Delta(origin=base, scale=1e8))
    with pytest.raises(DeltaOverflows, match="F16"):
        apply_transplant(plan, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_disjoint_changes_together_are_those_changes_one_after_another(base: Base, tmp_path: Path) -> None:
    recipient = fine_tuned(base, tmp_path / "recipient")
    low, high = (learnt_organ(base, Span(at, at + 1), tmp_path / f"{at}.organ", seed=at) for at in (0, 3))
    way = Delta(origin=base, scale=0.7)
    together = open_base(apply_transplant(plan_body([high, low], base=recipient, way=way), out=tmp_path / "together"))
    first = apply_transplant(plan_transplant(organ=low, base=recipient, way=way), out=tmp_path / "first")
    second = apply_transplant(plan_transplant(organ=high, base=open_base(first), way=way), out=tmp_path / "second")
    assert together.sha256 == open_base(second).sha256
    assert undo_transplant(together.folder, out=tmp_path / "undone") == recipient.sha256


def test_changes_of_one_layer_are_refused_until_it_is_said_what_becomes_of_them(base: Base, tmp_path: Path) -> None:
    organs = [learnt_organ(base, span, tmp_path / f"{span.start}.organ") for span in (Span(0, 2), Span(1, 3))]
    with pytest.raises(SpansOverlap) as error:
        plan_body(organs, base=base, way=Delta(origin=base))
    assert "--overlap" in error.value.hint
    assert len(plan_body(organs, base=base, way=Delta(origin=base, overlap="mean")).grafts) == 2  # control


@pytest.mark.parametrize("overlap", ["mean", "ties"])
def test_a_layer_that_several_organs_changed_gets_their_merged_change(overlap: str, base: Base, tmp_path: Path) -> None:
    """Layers 0 and 3 have one organ and get all of its change; 1 and 2 have two."""
    from safetensors.torch import load_file

    spans = (Span(0, 3), Span(1, 4))
    organs = [learnt_organ(base, span, tmp_path / f"{span.start}.organ", seed=span.start) for span in spans]
    way = Delta(origin=base, scale=0.5, overlap="mean" if overlap == "mean" else "ties")
    recipient = fine_tuned(base, tmp_path / "recipient")
    new = open_base(apply_transplant(plan_body(organs, base=recipient, way=way), out=tmp_path / "new"))
    one, other = (load_file(organ.path) for organ in organs)
    merge = torch_mean if overlap == "mean" else ties_by_hand
    for layer in range(4):
        before, given, after = (span_tensors(model, Span(layer, layer + 1)) for model in (recipient, base, new))
        for name, tensor in after.items():
            rest = name.removeprefix("layers.0.")
            changes = [
                organ[f"layers.{layer - span.start}.{rest}"].double() - given[name].double()
                for organ, span in ((one, spans[0]), (other, spans[1]))
                if span.start <= layer < span.stop
            ]
            merged = changes[0] if len(changes) == 1 else merge(changes)
            torch.testing.assert_close(tensor.double(), before[name].double() + 0.5 * merged, rtol=0, atol=1e-6)
    assert undo_transplant(new.folder, out=tmp_path / "undone") == recipient.sha256


def torch_mean(changes: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(changes).mean(dim=0)


def ties_by_hand(changes: list[torch.Tensor]) -> torch.Tensor:
    """Written from the paper's algorithm 1, number by number: trim, elect sign, disjoint mean."""
    trimmed = []
    for change in changes:
        flat = change.float().flatten()
        kept = flat.abs().argsort(descending=True)[: int(0.2 * len(flat))]
        trimmed.append(torch.zeros_like(flat).index_copy(0, kept, flat[kept]))
    merged = torch.zeros_like(trimmed[0])
    for number, votes in enumerate(zip(*(change.tolist() for change in trimmed), strict=True)):
        sign = 1 if sum(votes) >= 0 else -1
        agreeing = [vote for vote in votes if vote * sign > 0]
        merged[number] = sum(agreeing) / max(1, len(agreeing))
    return merged.view(changes[0].shape).double()


def test_without_the_package_that_merges_ties_is_refused_in_the_plan(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organs = [learnt_organ(base, span, tmp_path / f"{span.start}.organ") for span in (Span(0, 2), Span(1, 3))]
    monkeypatch.setattr(delta, "find_spec", lambda name: None)
    with pytest.raises(MergerMissing) as error:
        plan_body(organs, base=base, way=Delta(origin=base, overlap="ties"))
    assert "not-fed[peft]" in error.value.hint


def test_an_organ_that_names_another_shape_as_its_origin_is_refused_in_the_plan(base: Base, tmp_path: Path) -> None:
    """Its header is not signed: blood type and tensors of one base, the digest of another's layers."""
    origin = save_base(tiny.tiny_qwen2(), tmp_path / "origin")
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    forged = replace(organ.manifest, span_sha256=origin.span_sha256(SPAN))
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in organ.places.items()}
    path = tmp_path / "forged.organ"
    write_safetensors(path, shapes, metadata=forged.as_metadata(), blocks=lambda name: organ.places[name].blocks())
    with pytest.raises(ShapeDiffers, match="and its base"):
        plan_transplant(organ=read_organ(path), base=base, way=Delta(origin=origin))
