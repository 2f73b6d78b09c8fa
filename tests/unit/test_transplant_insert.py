"""An organ's layers between a model's own: names, kinds, config.json, an identity start, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from not_fed import canonical
from not_fed.organ.anatomy import BloodTypeDiffers, Span, SpanOutside
from not_fed.organ.body import SpansOverlap
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import LayerTypesDiffer, OtherBase, ShapeDiffers
from not_fed.organ.transplant import (
    Insert,
    NothingToUndo,
    UndoDiffers,
    apply_transplant,
    layers_put_in,
    plan_body,
    plan_transplant,
    undo_transplant,
)
from not_fed.organ.transplant.insert import LayersByNumber, NoIdentity
from tests.support import tiny
from tests.support.folders import save_base
from tests.support.learnt import learnt_organ, span_tensors, tensors_of

SPAN = Span(1, 3)
MODELS = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss, tiny.tiny_gemma2, tiny.tiny_qwen2]
IDS = torch.arange(5, 15)[None]  # longer than the tiny models' windows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base", max_shard_size="20KB")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_layers_that_start_at_zero_change_nothing_bit_for_bit(
    make: Callable[[], PreTrainedModel], shards: str, tmp_path: Path
) -> None:
    """Before the layers, between them and behind them; in one file and in many."""
    base = save_base(make(), tmp_path / "base", max_shard_size=shards)
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    expected = logits(base.folder)
    at = {"5GB": 3, "20KB": 0}[shards]
    plan = plan_transplant(organ=organ, base=base, at=at, way=Insert())
    assert (plan.layers, plan.replaced, len(plan.inserted)) == (6, frozenset(), len(organ.places))
    out = apply_transplant(plan, out=tmp_path / "new")
    assert torch.equal(logits(out), expected)
    assert layers_put_in(out) == [Span(at, at + 2)]
    assert undo_transplant(out, out=tmp_path / "undone") == base.sha256
    assert (tmp_path / "undone" / "config.json").read_bytes() == (base.folder / "config.json").read_bytes()
    assert torch.equal(logits(tmp_path / "undone"), expected)


@pytest.mark.parametrize("make", MODELS)
def test_only_what_the_layers_write_is_zero_and_with_start_organ_nothing_is(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    base = save_base(make(), tmp_path / "base")
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    given = load_file(organ.path)
    for start in ("zero", "organ"):
        plan = plan_transplant(organ=organ, base=base, at=4, way=Insert(start="zero" if start == "zero" else "organ"))
        new = open_base(apply_transplant(plan, out=tmp_path / start))
        outputs = tuple(f"{base.family.list_name}.{layer}.{name}" for layer in (0, 1) for name in base.family.outputs)
        for name, tensor in span_tensors(new, Span(4, 6)).items():
            zero = start == "zero" and name.startswith(outputs)
            assert torch.equal(tensor, torch.zeros_like(tensor) if zero else given[name]), name
    assert not torch.equal(logits(tmp_path / "organ"), logits(base.folder))  # control


def test_the_layers_behind_the_new_ones_keep_their_weights_and_their_kinds(tmp_path: Path) -> None:
    """GPT-OSS has sliding and full attention in turn; its class would count them off anew in a longer model."""
    base = save_base(tiny.tiny_gpt_oss(), tmp_path / "base")
    organ = extract(base, span=Span(1, 2), out=tmp_path / "o.organ")
    new = open_base(apply_transplant(plan_transplant(organ=organ, base=base, at=1, way=Insert()), out=tmp_path / "new"))
    sliding, full = "sliding_attention", "full_attention"
    assert base.config["layer_types"] == [sliding, full, sliding, full]
    assert new.config["layer_types"] == [sliding, full, full, sliding, full]
    for old in range(4):
        before, after = (
            span_tensors(base, Span(old, old + 1)),
            span_tensors(new, Span(old + (old > 0), old + 1 + (old > 0))),
        )
        assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_kinds_that_config_json_leaves_to_its_class_are_written_out(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_gpt_oss(), tmp_path / "base")
    config = {key: value for key, value in base.config.items() if key != "layer_types"}
    (base.folder / "config.json").write_text(json.dumps(config))
    base = open_base(base.folder)
    organ = learnt_organ(base, Span(1, 2), tmp_path / "o.organ")
    expected = logits(base.folder)
    out = apply_transplant(plan_transplant(organ=organ, base=base, at=1, way=Insert()), out=tmp_path / "new")
    assert open_base(out).config["layer_types"][1:3] == ["full_attention"] * 2
    assert torch.equal(logits(out), expected)


def test_shards_below_the_new_layers_are_hard_links(base: Base, tmp_path: Path) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    out = apply_transplant(plan_transplant(organ=organ, base=base, at=3, way=Insert()), out=tmp_path / "new")
    linked = {
        place.file.name
        for place in base.places.values()
        if place.file.stat().st_ino == (out / place.file.name).stat().st_ino
    }
    renamed = {base.places[name].file.name for name in base.span_names(Span(3, 4)).values()}
    assert linked == {place.file.name for place in base.places.values()} - renamed
    assert linked
    assert (out / "model-inserted-1.safetensors").exists()


def test_the_index_of_a_longer_model_says_where_everything_is(base: Base, tmp_path: Path) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    out = apply_transplant(plan_transplant(organ=organ, base=base, at=1, way=Insert()), out=tmp_path / "new")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == found
    tensors = tensors_of(out).values()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors)
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors)


def test_several_organs_go_in_at_once_each_where_it_was_cut(base: Base, tmp_path: Path) -> None:
    organs = [learnt_organ(base, span, tmp_path / f"{span.start}.organ") for span in (Span(2, 4), Span(0, 1))]
    plan = plan_body(organs, base=base, way=Insert(start="organ"))
    assert [graft.at for graft in plan.grafts] == [Span(0, 1), Span(3, 5)]
    out = apply_transplant(plan, out=tmp_path / "new")
    for at, organ in ((Span(0, 1), organs[1]), (Span(3, 5), organs[0])):
        given = load_file(organ.path)
        assert all(torch.equal(tensor, given[name]) for name, tensor in span_tensors(open_base(out), at).items())
    assert layers_put_in(out) == [Span(0, 1), Span(3, 5)]
    assert undo_transplant(out, out=tmp_path / "undone") == base.sha256


def test_a_longer_model_can_grow_again_and_goes_back_step_by_step(base: Base, tmp_path: Path) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    once = open_base(apply_transplant(plan_transplant(organ=organ, base=base, at=4, way=Insert()), out=tmp_path / "1"))
    plan = plan_transplant(organ=organ, base=once, at=0, way=Insert())
    assert plan.exact  # its own layers lie where they did
    twice = open_base(apply_transplant(plan, out=tmp_path / "2"))
    assert torch.equal(logits(twice.folder), logits(base.folder))
    assert undo_transplant(twice.folder, out=tmp_path / "back-1") == once.sha256
    assert undo_transplant(tmp_path / "back-1", out=tmp_path / "back-0") == base.sha256  # its notes came back with it
    assert not (tmp_path / "back-0" / "not-fed").exists()


def test_new_layers_are_dropped_whatever_they_have_become_and_the_others_are_checked(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    out = apply_transplant(plan_transplant(organ=organ, base=base, at=2, way=Insert()), out=tmp_path / "new")
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] += 1  # as training does
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    assert undo_transplant(out, out=tmp_path / "undone") == base.sha256
    tensors["model.layers.4.mlp.down_proj.weight"] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UndoDiffers):
        undo_transplant(out, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
    (out / "not-fed" / "transplant.json").write_text("{}")
    with pytest.raises(NothingToUndo):
        undo_transplant(out, out=tmp_path / "never")


def test_layers_that_do_not_belong_are_refused_in_the_plan(base: Base, tmp_path: Path) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    wide = learnt_organ(base, Span(2, 4), tmp_path / "wide.organ")
    with pytest.raises(SpansOverlap):
        plan_body([organ, wide], base=base, way=Insert())
    with pytest.raises(SpanOutside, match="from 0 to 4, the end"):
        plan_transplant(organ=organ, base=base, at=5, way=Insert())
    with pytest.raises(BloodTypeDiffers, match="family"):
        plan_transplant(organ=organ, base=save_base(tiny.tiny_gpt2(), tmp_path / "gpt2"), at=1, way=Insert())
    half = save_base(tiny.tiny_llama().bfloat16(), tmp_path / "half")
    with pytest.raises(ShapeDiffers, match="F32"):
        plan_transplant(organ=organ, base=half, at=1, way=Insert())
    other = save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    with pytest.raises(OtherBase, match=other.sha256[:16]):
        plan_transplant(organ=organ, base=other, at=1, way=Insert())
    accepted = plan_transplant(organ=organ, base=other, at=1, accept_different_base=True, way=Insert())
    assert not accepted.exact


@pytest.mark.parametrize(
    "more",
    [
        {"no_rope_layers": [1, 1, 1, 0]},
        {"scale_attn_by_inverse_layer_idx": True},
        {"quantization_config": {"modules_to_not_convert": ["model.layers.3.mlp"]}},
        {"num_hidden_layers": 4, "n_layer": 5},
    ],
)
def test_a_model_whose_config_counts_its_layers_is_left_alone(
    more: dict[str, object], base: Base, tmp_path: Path
) -> None:
    organ = learnt_organ(base, SPAN, tmp_path / "o.organ")
    with pytest.raises(LayersByNumber):
        plan_transplant(organ=organ, base=replace(base, config={**base.config, **more}), at=1, way=Insert())


@pytest.mark.parametrize("outputs", [(), ("self_attn.o_proj.", "mlp.experts.down_proj")])
def test_a_start_at_zero_is_refused_where_it_is_not_known_what_has_to_be_zero(
    outputs: tuple[str, ...], base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organ, family = learnt_organ(base, SPAN, tmp_path / "o.organ"), replace(base.family, outputs=outputs)
    monkeypatch.setattr(Base, "family", property(lambda self: family))
    with pytest.raises(NoIdentity) as error:
        plan_transplant(organ=organ, base=base, at=1, way=Insert())
    assert "--start organ" in error.value.hint
    assert plan_transplant(organ=organ, base=base, at=1, way=Insert(start="organ")).inserted  # control


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_from_before_there_were_modes_is_still_undone(number: int, base: Base, tmp_path: Path) -> None:
    spans = [SPAN] if number == 1 else [Span(0, 1), Span(3, 4)]
    organs = [learnt_organ(base, span, tmp_path / f"{span.start}.organ") for span in spans]
    out = apply_transplant(plan_body(organs, base=base), out=tmp_path / "new")
    grafts = [
        {"at": [span.start, span.stop], "organ_sha256": organ.sha256, "undo": "not-fed/taken-out.organ"}
        for span, organ in zip(spans, organs, strict=True)
    ]
    old = {
        "schema": f"not-fed/transplant-record/{number}",
        "mode": "replace",
        "base_sha256": base.sha256,
        "replaced": [],
    }
    record = old | (grafts[0] if number == 1 else {"grafts": grafts})
    (out / "not-fed" / "transplant.json").write_bytes(canonical.dumps(record))
    assert layers_put_in(out) == spans
    assert undo_transplant(out, out=tmp_path / "undone") == base.sha256


def test_a_layer_that_config_json_does_not_count_is_never_dropped(base: Base, tmp_path: Path) -> None:
    """Some models carry one more, which predicts further tokens: its number would be another afterwards."""
    config = base.folder / "config.json"
    fewer = tmp_path / "fewer"
    shutil.copytree(base.folder, fewer)
    (fewer / "config.json").write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    organ = extract(open_base(fewer), span=SPAN, out=tmp_path / "o.organ")
    with pytest.raises(LayersByNumber, match="layer 3"):
        plan_transplant(organ=organ, base=open_base(fewer), way=Insert())


def test_layers_that_are_counted_off_in_a_model_that_is_not_listed_stay_where_they_are(tmp_path: Path) -> None:
    """Every second one a mixture of experts: one layer more, and each of the others would be of the other kind."""
    config = Qwen3MoeConfig(
        vocab_size=128, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=2, num_experts_per_tok=1,
        decoder_sparse_step=2,
    )  # fmt: skip
    base = save_base(tiny.filled(Qwen3MoeForCausalLM, config), tmp_path / "base")
    settings = json.loads((base.folder / "config.json").read_text())
    del settings["mlp_only_layers"]  # a list, refused by its name
    (base.folder / "config.json").write_text(json.dumps(settings))
    base = open_base(base.folder)
    organ = extract(base, span=SPAN, out=tmp_path / "o.organ")
    with pytest.raises(LayersByNumber, match="other tensors"):
        plan_transplant(organ=organ, base=base, way=Insert(start="organ"))


def test_the_new_layers_never_lie_in_a_file_of_a_name_that_is_taken(base: Base, tmp_path: Path) -> None:
    """An old file of that name, which no index names any more, would be copied over them."""
    stale = tmp_path / "stale"
    shutil.copytree(base.folder, stale)
    save_file({"old": torch.zeros(1)}, stale / "model-inserted-1.safetensors")
    organ = learnt_organ(open_base(stale), SPAN, tmp_path / "o.organ")
    out = apply_transplant(
        plan_transplant(organ=organ, base=open_base(stale), way=Insert(start="organ")), out=tmp_path / "out"
    )
    assert span_tensors(open_base(out), SPAN).keys() == organ.places.keys()


def test_an_index_that_says_nothing_of_the_whole_is_told_its_size(base: Base, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(base.folder, silent)
    index = silent / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": None}))
    organ = extract(open_base(silent), span=SPAN, out=tmp_path / "o.organ")
    out = apply_transplant(plan_transplant(organ=organ, base=open_base(silent), way=Insert()), out=tmp_path / "out")
    total = json.loads((out / index.name).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.nbytes for tensor in tensors_of(out).values())


@pytest.mark.parametrize("kinds", [["evil", "x"], "ab", ["full_attention"], [1, 2], [{}, {}], 7, None])
def test_kinds_that_the_family_has_not_never_reach_config_json(kinds: object, tmp_path: Path) -> None:
    base = save_base(tiny.tiny_gemma2(), tmp_path / "base")
    organ = extract(base, span=SPAN, out=tmp_path / "o.organ")
    lying = replace(organ.manifest, blood_type={**organ.manifest.blood_type, "layer_types": kinds})
    with pytest.raises(LayerTypesDiffer):
        plan_transplant(organ=replace(organ, manifest=lying), base=base, way=Insert())
