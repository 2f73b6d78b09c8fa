"""An organ of another width: what is exact is exact, what the fit finds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from not_fed.cli.main import app
from not_fed.errors import InputError, UsageError
from not_fed.files import OutputExists
from not_fed.organ.adapt import CannotAdapt, NotFinite, adapt_identity, plan_adaptation
from not_fed.organ.adapt_fit import (
    FitSettings,
    TokenizersDiffer,
    TooLittleText,
    adapt_by_least_squares,
    paired_tokens,
    ridge,
)
from not_fed.organ.anatomy import Span, SpanOutside
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import OtherBase, check_fit
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.recover import RecoverySettings
from not_fed.organ.transplant import ChangedSincePlan, apply_transplant, plan_transplant
from not_fed.organ.writing import write_safetensors
from tests.support import tiny
from tests.support.folders import records, save_base, tokenizer

SPAN = Span(1, 3)
TEXTS = records(120)
RECORD = torch.tensor([[5, 9, 40, 3, 77, 21, 8, 5]])


def wider(**other: object) -> PreTrainedModel:
    """A Llama half as wide again as the tiny one, with six heads instead of four and 64 neurons instead of 48."""
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 3} | other
    config = LlamaConfig(**{**tiny.tiny_llama().config.to_dict(), "head_dim": 8, **sizes})
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that we replace
        model = LlamaForCausalLM(config)
    source = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.1, generator=source)
    return model.eval()


def tuned(donor: Base, path: Path, *, training: dict[str, Any] | None = None, strength: float = 0.05) -> OrganInfo:
    """The donor's span with other numbers, as training leaves it."""
    untouched = extract(donor, span=SPAN, out=path.with_suffix(".untouched"))
    source = torch.Generator().manual_seed(7)
    numbers = {
        name: tensor + strength * torch.randn(tensor.shape, generator=source)
        for name, tensor in load_file(untouched.path).items()
    }
    write(untouched, numbers, path, training=training or {"mode": "in-place", "dp": None})
    return read_organ(path)


def write(like: OrganInfo, numbers: dict[str, Tensor], path: Path, *, training: dict[str, Any]) -> None:
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in like.places.items()}
    metadata = replace(like.manifest, training=training).as_metadata()
    write_safetensors(path, shapes, metadata=metadata, blocks=lambda name: [numbers[name].numpy().tobytes()])


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=RECORD).logits  # type: ignore[no-any-return]


def transplanted(organ: OrganInfo, base: Base, out: Path) -> Path:
    return apply_transplant(plan_transplant(organ=organ, base=base), out=out)


def turned(model: PreTrainedModel) -> PreTrainedModel:
    """The same function in another basis of a stream three times as large: norm weights go into the projections."""
    turn = torch.linalg.qr(torch.randn(tiny.HIDDEN, tiny.HIDDEN, generator=torch.Generator().manual_seed(3)))[0]
    inner = model.model
    with torch.no_grad():
        for layer in inner.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, reads in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                for read in reads:
                    read.weight.copy_(read.weight * norm.weight @ turn.T)
                norm.weight.fill_(1)
            for written in (attention.o_proj, mlp.down_proj):
                written.weight.copy_(3 * turn @ written.weight)
        model.lm_head.weight.copy_(model.lm_head.weight * inner.norm.weight @ turn.T)
        inner.norm.weight.fill_(1)
        inner.embed_tokens.weight.copy_(3 * inner.embed_tokens.weight @ turn.T)
    return model


def embedded(narrow: PreTrainedModel) -> PreTrainedModel:
    """A wider model whose further coordinates, heads and neurons are all zero and whose norms make up for that."""
    model = wider(tie_word_embeddings=False, rms_norm_eps=narrow.config.rms_norm_eps * tiny.HIDDEN / 48)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            given = narrow.get_parameter(name)
            weight.zero_()
            weight[tuple(slice(size) for size in given.shape)] = given * ((32 / 48) ** 0.5 if "norm" in name else 1)
    return model


def test_at_equal_widths_the_identity_start_changes_no_number(tmp_path: Path) -> None:
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(tiny.tiny_llama(seed=1), tmp_path / "recipient")
    organ = tuned(donor, tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity", at=0)
    made = adapt_identity(plan, out=tmp_path / "g.organ")
    assert plan.exact
    assert made.span == Span(0, 2)
    assert check_fit(made, base=recipient).exact  # it replaces just these layers, and says so
    before, after = load_file(organ.path), load_file(made.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_donor_inside_a_wider_recipient_is_exact_but_for_the_norms_epsilon(tmp_path: Path) -> None:
    narrow = tiny.tiny_llama(tie_word_embeddings=False)
    donor = save_base(narrow, tmp_path / "donor")
    recipient = save_base(embedded(narrow), tmp_path / "recipient")
    assert torch.allclose(logits(recipient.folder), logits(donor.folder), atol=1e-5)  # one function in two widths
    organ = tuned(donor, tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity")
    made = adapt_identity(plan, out=tmp_path / "g.organ")
    expected = logits(transplanted(organ, donor, tmp_path / "in-donor"))
    assert torch.allclose(logits(transplanted(made, recipient, tmp_path / "in-recipient")), expected, atol=1e-4)
    assert not torch.allclose(expected, logits(donor.folder), atol=0.1)  # the organ did change something


def test_least_squares_finds_a_rotation_and_carries_what_the_organ_has_learnt(tmp_path: Path) -> None:
    donor = save_base(tiny.tiny_llama(tie_word_embeddings=False), tmp_path / "donor")
    recipient = save_base(turned(tiny.tiny_llama(tie_word_embeddings=False)), tmp_path / "recipient")
    organ = tuned(donor, tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient)
    found = adapt_by_least_squares(plan, texts=TEXTS, out=tmp_path / "g.organ")
    expected = logits(transplanted(organ, donor, tmp_path / "in-donor"))
    assert all(min(one.read, one.write) > 0.9999 for one in found.quality)
    assert torch.allclose(logits(transplanted(found.organ, recipient, tmp_path / "in-recipient")), expected, atol=5e-3)
    nothing = adapt_by_least_squares(plan, texts=TEXTS, out=tmp_path / "n.organ", settings=FitSettings(carry=0.0))
    rebuilt = logits(transplanted(nothing.organ, recipient, tmp_path / "rebuilt"))
    own = logits(donor.folder)
    assert (rebuilt - own).norm() < 0.7 * (expected - own).norm()  # aimed at what was there already


def test_between_strangers_the_adapted_organ_comes_nearer_than_leaving_the_layers_out(tmp_path: Path) -> None:
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(wider(), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient)
    assert plan.resized["hidden_size"] == (32, 48)
    found = adapt_by_least_squares(plan, texts=TEXTS, out=tmp_path / "g.organ")
    own = extract(recipient, span=SPAN, out=tmp_path / "own.organ")
    silent = {
        name: tensor * 0 if "o_proj" in name or "down_proj" in name else tensor
        for name, tensor in load_file(own.path).items()
    }
    write(own, silent, tmp_path / "silent.organ", training={"mode": "in-place"})
    whole = logits(recipient.folder)
    off = [
        (logits(transplanted(one, recipient, tmp_path / name)) - whole).norm()
        for name, one in (("adapted", found.organ), ("left-out", read_organ(tmp_path / "silent.organ")))
    ]
    assert off[0] < off[1]


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (tiny.tiny_llama, {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 64}),
        (tiny.tiny_llama, {"num_attention_heads": 8, "num_key_value_heads": 2}),  # larger groups
        (tiny.tiny_llama, {"num_attention_heads": 4, "num_key_value_heads": 4}),  # smaller ones: copies
        (tiny.tiny_qwen2, {"num_attention_heads": 8, "num_key_value_heads": 4}),
        (tiny.tiny_qwen3, {"num_attention_heads": 8, "num_key_value_heads": 2}),
        (tiny.tiny_mistral, {"num_attention_heads": 8, "num_key_value_heads": 4}),
    ],
)
def test_a_query_head_stays_with_its_key_value_head(
    make: Callable[[], PreTrainedModel], more: dict[str, int], tmp_path: Path
) -> None:
    """Same stream, more or other heads and more neurons: the recipient computes what the donor does."""
    donor = save_base(make(), tmp_path / "donor")
    config = {**make().config.to_dict(), "head_dim": 8, **more}
    with torch.random.fork_rng(devices=[]):
        other = type(make())(type(make().config)(**config))
    outside = {name: weight for name, weight in make().state_dict().items() if ".layers." not in name}
    other.load_state_dict(outside, strict=False)  # embedding and last norm are the donor's; all layers are replaced
    recipient = save_base(other.eval(), tmp_path / "recipient")
    organ = extract(donor, span=Span(0, tiny.LAYERS), out=tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity")
    made = adapt_identity(plan, out=tmp_path / "g.organ")
    assert torch.allclose(logits(transplanted(made, recipient, tmp_path / "new")), logits(donor.folder), atol=1e-5)


def test_padding_can_learn(tmp_path: Path) -> None:
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(wider(hidden_size=32, num_attention_heads=8, num_key_value_heads=4), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity")
    made = adapt_identity(plan, out=tmp_path / "g.organ")
    model = AutoModelForCausalLM.from_pretrained(transplanted(made, recipient, tmp_path / "new"))
    model(input_ids=RECORD, labels=RECORD).loss.backward()
    layer = model.model.layers[1]
    assert layer.mlp.down_proj.weight[:, 48:].abs().max() == 0 < layer.mlp.down_proj.weight.grad[:, 48:].abs().max()
    assert layer.self_attn.o_proj.weight.grad[:, 32:].abs().max() > 0


def test_an_adapted_organ_keeps_its_parents_claims(tmp_path: Path) -> None:
    dp = {"epsilon": 3.0, "delta": 1e-5, "unit": "record"}
    audit = {"method": "one-run", "epsilon_lower_bound": 0.4, "confidence": 0.95, "canaries": 100}
    said = {"mode": "stand-alone", "lr": 0.002, "dp": dp, "audit": audit, "releases": [{"name": "loss", "value": 2.0}]}
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(wider(), tmp_path / "recipient")
    organ = tuned(donor, tmp_path / "f.organ", training=said)
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity")
    manifest = adapt_identity(plan, out=tmp_path / "g.organ").manifest
    assert manifest.training is not None
    assert {**said, "mode": "adapted"}.items() <= manifest.training.items()
    assert manifest.training["trained"] == "stand-alone"
    assert manifest.training["adapted"]["base_sha256"] == donor.sha256
    assert manifest.parents == (organ.sha256,)
    assert manifest.base_sha256 == recipient.sha256


def test_a_private_run_from_an_adapted_organ_warns_as_it_would_from_its_parent(tmp_path: Path) -> None:
    from not_fed.organ.train import _promises_nothing

    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    organ = tuned(donor, tmp_path / "f.organ")
    untouched = read_organ(tmp_path / "f.untouched")
    for number, (parent, warns) in enumerate([(organ, True), (untouched, False)]):
        plan = plan_adaptation(parent, donor=donor, recipient=donor, start="identity")
        assert _promises_nothing(adapt_identity(plan, out=tmp_path / f"{number}.organ")) is warns


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: wider(num_attention_heads=3, num_key_value_heads=1), "key_value_heads"),
        (lambda: wider(intermediate_size=40), "intermediate_size"),
        (lambda: wider(head_dim=16), "head_dim"),
        (lambda: wider(hidden_act="gelu"), "activation"),
        (lambda: wider(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), "rope"),
        (lambda: wider(attention_bias=True), "attention_bias"),
        (tiny.tiny_gpt2, "family"),
        (tiny.tiny_mistral, "family"),
    ],
)
def test_what_cannot_be_padded_is_refused_by_name(
    other: Callable[[], PreTrainedModel], named: str, tmp_path: Path
) -> None:
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(other(), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    with pytest.raises(CannotAdapt) as refused:
        plan_adaptation(organ, donor=donor, recipient=recipient)
    assert named in str(refused.value)


def test_an_organ_of_another_base_and_a_place_outside_are_refused(tmp_path: Path) -> None:
    donor, recipient = save_base(tiny.tiny_llama(), tmp_path / "donor"), save_base(wider(), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    with pytest.raises(OtherBase):
        plan_adaptation(organ, donor=save_base(tiny.tiny_llama(seed=5), tmp_path / "other"), recipient=recipient)
    with pytest.raises(SpanOutside):
        plan_adaptation(organ, donor=donor, recipient=recipient, at=3)


def test_text_that_has_no_pairs_or_too_few_is_refused(tmp_path: Path) -> None:
    donor, recipient = save_base(tiny.tiny_llama(), tmp_path / "donor"), save_base(wider(), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    plan = plan_adaptation(organ, donor=donor, recipient=recipient)
    chosen = paired_tokens(plan, texts=TEXTS, settings=FitSettings(positions=100))
    assert 90 < sum(map(len, chosen)) <= 100
    with pytest.raises(TooLittleText):
        paired_tokens(plan, texts=TEXTS[:3], settings=FitSettings())
    other = tokenizer()
    other.add_tokens(["w5 w6", "w9"])
    other.backend_tokenizer.model.unk_token = "w1"
    other.add_tokens(["w10 "])
    other.save_pretrained(recipient.folder)
    with pytest.raises(TokenizersDiffer):
        adapt_by_least_squares(plan, texts=["w10 w11 w12 w13"] * 50, out=tmp_path / "g.organ")
    assert not (tmp_path / "g.organ").exists()


def test_nothing_is_written_where_something_stands_a_file_has_changed_or_a_number_has_no_room(tmp_path: Path) -> None:
    donor = save_base(tiny.tiny_llama(), tmp_path / "donor")
    recipient = save_base(wider().to(torch.float16), tmp_path / "recipient")
    organ = tuned(donor, tmp_path / "f.organ", strength=1e6)
    plan = plan_adaptation(organ, donor=donor, recipient=recipient, start="identity")
    with pytest.raises(NotFinite):
        adapt_identity(plan, out=tmp_path / "g.organ")
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OutputExists):
        adapt_identity(plan, out=tmp_path / "there")
    fine = plan_adaptation(read_organ(tmp_path / "f.untouched"), donor=donor, recipient=recipient, start="identity")
    (recipient.folder / "model.safetensors").touch()
    with pytest.raises(ChangedSincePlan):
        adapt_identity(fine, out=tmp_path / "g.organ")
    assert not (tmp_path / "g.organ").exists()


def test_ridge_finds_a_linear_map_and_says_how_much_is_not_linear() -> None:
    source = torch.Generator().manual_seed(0)
    given, linear = torch.randn(2000, 6, generator=source), torch.randn(4, 6, generator=source)
    noise = torch.randn(2000, 4, generator=source) * (given @ linear.T).std()
    exact, whole = ridge(given, given @ linear.T)
    assert torch.allclose(exact.float(), linear, atol=1e-5)
    assert whole == pytest.approx(1.0)
    assert ridge(given, given @ linear.T + noise)[1] == pytest.approx(0.5, abs=0.05)
    weights = (torch.arange(2000) < 1000).float()[:, None]  # positions without weight do not count
    mixed = torch.where(weights > 0, given @ linear.T, noise)
    assert torch.allclose(ridge(given, mixed, weights=weights)[0].float(), linear, atol=1e-5)


def test_the_command_makes_an_organ_that_transplant_takes(tmp_path: Path) -> None:
    donor, recipient = save_base(tiny.tiny_llama(), tmp_path / "donor"), save_base(wider(), tmp_path / "recipient")
    extract(donor, span=SPAN, out=tmp_path / "f.organ")
    (tmp_path / "public.txt").write_text("\n".join(TEXTS))
    call = [
        "adapt", str(tmp_path / "f.organ"), "--base", str(donor.folder), "--into", str(recipient.folder),
        "--data", str(tmp_path / "public.txt"), "--at", "2", "--out", str(tmp_path / "g.organ"), "--json",
    ]  # fmt: skip
    planned = CliRunner().invoke(app, [*call, "--dry-run"])
    assert json.loads(planned.stdout)["dry_run"] is True
    assert not (tmp_path / "g.organ").exists()
    made = json.loads(CliRunner().invoke(app, call).stdout)
    assert made["schema"] == "not-fed/adapted/1"
    assert made["at"] == [2, 4]
    assert made["resized"]["hidden_size"] == [32, 48]
    assert {(one["layer"], one["branch"]) for one in made["quality"]} == {
        (layer, branch) for layer in (2, 3) for branch in ("attention", "mlp")
    }
    put_in = ["transplant", made["out"], "--into", str(recipient.folder), "--out", str(tmp_path / "new"), "--json"]
    done = json.loads(CliRunner().invoke(app, put_in).stdout)
    assert done["exact"] is True
    assert torch.isfinite(logits(tmp_path / "new")).all()
    assert CliRunner().invoke(app, [*call[:8], "--start", "identity", "--out", "x"]).exit_code != 0  # no data there


@pytest.mark.parametrize(
    "lie",
    [
        {"num_key_value_heads": 0},
        {"num_attention_heads": 1, "num_key_value_heads": 3},
        {"num_attention_heads": 60, "num_key_value_heads": 30},
        {"intermediate_size": 6400},
        {"hidden_size": 64},
        {"hidden_size": "48"},
    ],
)
def test_a_recipient_whose_settings_are_not_those_of_its_weights_is_refused(
    lie: dict[str, Any], tmp_path: Path
) -> None:
    donor, recipient = save_base(tiny.tiny_llama(), tmp_path / "donor"), save_base(wider(), tmp_path / "recipient")
    organ = extract(donor, span=SPAN, out=tmp_path / "f.organ")
    config = recipient.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **lie}))
    with pytest.raises(CannotAdapt, match=r"recipient's config\.json"):
        plan_adaptation(organ, donor=donor, recipient=open_base(recipient.folder), start="identity")


@pytest.mark.parametrize("option", ["--carry", "--positions", "--max-tokens", "--seed"])
def test_an_option_of_the_fit_is_refused_where_nothing_is_fitted(option: str) -> None:
    call = ["adapt", "f.organ", "--base", "b", "--into", "b", "--start", "identity", "--out", "g", option, "4"]
    with pytest.raises(UsageError, match=option):
        CliRunner().invoke(app, call, catch_exceptions=False)


@pytest.mark.parametrize("seed", [-1, 1 << 70])
def test_a_seed_that_no_generator_takes_is_bad_input(seed: int) -> None:
    with pytest.raises(InputError, match="seed"):
        FitSettings(seed=seed)
    with pytest.raises(InputError, match="seed"):
        RecoverySettings(seed=seed)
