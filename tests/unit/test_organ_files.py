"""Extract, digests, fit and transplant on real folders of tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from not_fed.files import OutputExists
from not_fed.organ.anatomy import BadSpan, BloodTypeDiffers, Span, SpanOutside, blood_type
from not_fed.organ.checkpoint import Base, NotABase, digest_tensors, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import OtherBase, check_fit
from not_fed.organ.organ import NotAnOrgan, read_organ
from not_fed.organ.transplant import ChangedSincePlan, apply_transplant, plan_transplant
from tests.support import tiny
from tests.support.folders import save_base

MODELS = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss, tiny.tiny_qwen2]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return found


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path / "base")


@pytest.mark.parametrize("make", MODELS)
def test_an_organ_holds_the_span_bit_for_bit_and_nothing_else(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    base = save_base(make(), tmp_path / "base", max_shard_size="20KB")
    assert len({place.file for place in base.places.values()}) > 1  # sharded
    organ = extract(base, span=Span(1, 3), out=tmp_path / "o.organ")
    whole, cut = tensors_of(base.folder), tensors_of(tmp_path) or {}
    with safe_open(organ.path, framework="pt") as file:
        cut = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = base.span_names(Span(1, 3))
    inside = [
        name
        for name in whole
        if f".{base.family.list_name}.1." in f".{name}" or f".{base.family.list_name}.2." in f".{name}"
    ]
    assert sorted(names.values()) == sorted(inside)
    assert cut.keys() == names.keys()
    assert all(torch.equal(cut[organ_name], whole[name]) for organ_name, name in names.items())
    assert organ.manifest.span_sha256 == digest_tensors(organ.places)  # the organ proves its own original digest
    assert organ.span == Span(1, 3)


def test_extract_reads_only_headers_and_the_span(base: Base, tmp_path: Path) -> None:
    """The base's other tensors are overwritten with zeros after its digest is known: the organ does not notice."""
    expected = extract(base, span=Span(1, 2), out=tmp_path / "first").sha256
    span = set(base.span_names(Span(1, 2)).values())
    with (base.folder / "model.safetensors").open("r+b") as file:
        for name, place in base.places.items():
            if name not in span:
                file.seek(place.begin)
                file.write(bytes(place.end - place.begin))
    assert extract(base, span=Span(1, 2), out=tmp_path / "second").sha256 == expected


def test_a_bases_digest_does_not_depend_on_sharding_or_file_names(tmp_path: Path) -> None:
    one = save_base(tiny.tiny_llama(), tmp_path / "one")
    many = save_base(tiny.tiny_llama(), tmp_path / "many", max_shard_size="20KB")
    other = save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    assert one.sha256 == many.sha256
    assert one.sha256 != other.sha256


def test_a_changed_base_gets_another_digest_although_one_is_remembered(base: Base) -> None:
    before = base.sha256
    place = next(iter(base.places.values()))
    with place.file.open("r+b") as file:
        file.seek(place.begin)
        byte = file.read(1)
        file.seek(place.begin)
        file.write(bytes([byte[0] ^ 1]))
    assert open_base(base.folder).sha256 != before


@pytest.mark.parametrize("make", MODELS)
def test_every_tensor_outside_the_plan_is_bit_identical(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    base = save_base(make(), tmp_path / "base", max_shard_size="20KB")
    donor = save_base(make(seed=1), tmp_path / "donor")
    organ = extract(donor, span=Span(1, 3), out=tmp_path / "o.organ")
    plan = plan_transplant(organ=organ, base=base, accept_different_base=True)
    assert not plan.exact
    out = apply_transplant(plan, out=tmp_path / "new")
    old, new, given = tensors_of(base.folder), tensors_of(out), tensors_of(donor.folder)
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        assert torch.equal(tensor, (given if name in plan.tensors else old)[name]), name
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(base.folder))


def test_a_transplant_leaves_its_base_alone_and_can_be_undone(base: Base, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.folder.iterdir()}
    donor = save_base(tiny.tiny_llama(seed=1), tmp_path / "donor")
    organ = extract(donor, span=Span(0, 2), out=tmp_path / "o.organ")
    new = apply_transplant(plan_transplant(organ=organ, base=base, accept_different_base=True), out=tmp_path / "new")
    assert {path.name: path.read_bytes() for path in base.folder.iterdir()} == before
    notes = json.loads((new / "not-fed" / "transplant.json").read_text())
    assert notes["organs"] == [{"at": [0, 2], "organ_sha256": organ.sha256}]
    changed = open_base(new)
    undo = plan_transplant(
        organ=read_organ(new / "not-fed" / "taken-out.organ"), base=changed, accept_different_base=True
    )
    back = apply_transplant(undo, out=tmp_path / "back")
    assert open_base(back).sha256 == base.sha256 != changed.sha256


def test_untouched_shards_are_hard_links(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_llama(), tmp_path / "base", max_shard_size="20KB")
    organ = extract(base, span=Span(3, 4), out=tmp_path / "o.organ")
    plan = plan_transplant(organ=organ, base=base)
    new = apply_transplant(plan, out=tmp_path / "new")
    shards = {place.file for place in base.places.values()}
    assert 0 < len(plan.touched) < len(shards)
    for shard in shards:
        assert (shard.stat().st_ino == (new / shard.name).stat().st_ino) == (shard not in plan.touched)


def test_a_plan_is_refused_after_the_base_changed(base: Base, tmp_path: Path) -> None:
    plan = plan_transplant(organ=extract(base, span=Span(0, 1), out=tmp_path / "o.organ"), base=base)
    with (base.folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ChangedSincePlan):
        apply_transplant(plan, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))


def test_another_base_is_refused_by_name_until_it_is_accepted(base: Base, tmp_path: Path) -> None:
    organ = extract(save_base(tiny.tiny_llama(seed=1), tmp_path / "donor"), span=Span(0, 2), out=tmp_path / "o.organ")
    with pytest.raises(OtherBase, match=base.sha256[:16]):
        check_fit(organ, base=base)
    assert not check_fit(organ, base=base, accept_different_base=True).exact


@pytest.mark.parametrize("make", [tiny.tiny_gpt2, tiny.tiny_mistral, tiny.tiny_qwen2])
def test_another_family_is_refused_whatever_is_accepted(
    make: Callable[[], PreTrainedModel], base: Base, tmp_path: Path
) -> None:
    organ = extract(save_base(make(), tmp_path / "donor"), span=Span(0, 2), out=tmp_path / "o.organ")
    with pytest.raises(BloodTypeDiffers, match=r"family llama.*got.*family"):
        check_fit(organ, base=base, accept_different_base=True)


def test_an_organ_fits_its_own_base_exactly_only_where_it_was_cut(base: Base, tmp_path: Path) -> None:
    organ = extract(base, span=Span(1, 3), out=tmp_path / "o.organ")
    assert check_fit(organ, base=base).exact
    with pytest.raises(OtherBase):
        check_fit(organ, base=base, at=0)
    with pytest.raises(SpanOutside):
        check_fit(organ, base=base, at=3, accept_different_base=True)


def test_outputs_are_never_overwritten(base: Base, tmp_path: Path) -> None:
    (tmp_path / "o.organ").write_bytes(b"mine")
    with pytest.raises(OutputExists):
        extract(base, span=Span(0, 1), out=tmp_path / "o.organ")
    assert (tmp_path / "o.organ").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["", "3", "3:3", "4:3", "-1:3", "a:b", "1:2:3", "1 :2", "1:²"])
def test_a_span_is_two_indices_in_order(text: str) -> None:
    with pytest.raises(BadSpan):
        Span.parse(text)


def test_folders_that_are_no_base_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotABase, match=r"config\.json"):
        open_base(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NotABase, match=r"model\.safetensors"):
        open_base(tmp_path)
    with pytest.raises(NotABase):
        open_base(tmp_path / "nowhere" / "at" / "all")


def test_rotary_settings_are_one_fact_in_either_spelling(base: Base) -> None:
    """config.json of older releases of transformers says `rope_theta`; a blood type must not depend on that."""
    config = json.loads((base.folder / "config.json").read_text())
    old = {key: value for key, value in config.items() if key != "rope_parameters"} | {"rope_theta": 10000}
    assert blood_type(old, where="old") == blood_type(config, where="new")
    assert blood_type(old | {"rope_theta": 1e6}, where="old") != blood_type(config, where="new")


def test_a_safetensors_file_that_is_no_organ_is_told_apart(base: Base) -> None:
    with pytest.raises(NotAnOrgan):
        read_organ(base.folder / "model.safetensors")


def test_a_shard_is_written_under_the_name_by_which_it_is_loaded(tmp_path: Path) -> None:
    """Another link to it in the folder, whichever comes first there, is not its name."""
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    for name in ("another.safetensors", "zzz.safetensors"):
        (base.folder / name).symlink_to("model.safetensors")
    organ = extract(base, span=Span(1, 3), out=tmp_path / "o")
    out = apply_transplant(plan_transplant(organ=organ, base=base), out=tmp_path / "out")
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
