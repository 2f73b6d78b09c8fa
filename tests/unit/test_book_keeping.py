"""Norms and sums from activations and output gradients are those of per-unit gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from not_fed.privacy.engine import experts, matrices, traces
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.engine.experts import Groups
from not_fed.privacy.engine.matrices import gram_is_cheaper
from tests.support.spans import TinySpan, flat
from tests.support.tiny import tiny_gpt2, tiny_gpt_oss, tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3

FAMILIES = [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_qwen3, tiny_mistral, tiny_gpt_oss]
EXACT = 1e-5  # relative
COARSE = 0.03  # where layers run in bfloat16
Build = Callable[[], PreTrainedModel]


@pytest.fixture(params=FAMILIES, ids=lambda build: build.__name__)
def build(request: pytest.FixtureRequest) -> Build:
    found: Build = request.param
    return found


@pytest.fixture(params=["record", "person"])
def span(request: pytest.FixtureRequest, build: Build) -> TinySpan:
    return TinySpan.of_people(build()) if request.param == "person" else TinySpan(build())


def _norms(span: TinySpan) -> Tensor:
    """By the engine, of all units in one micro-batch."""
    return BookKeeping(span.layers).norms(losses=span.losses, units=len(span.units))


def _expected(span: TinySpan) -> Tensor:
    """By plain autograd, one unit at a time: a gradient a row."""
    return torch.stack([flat(grads) for grads in span.one_by_one()])


def test_every_weight_of_the_span_is_trained_under_its_own_name(span: TinySpan) -> None:
    engine = BookKeeping(span.layers)
    expected = {f"{i}.{name}" for i, layer in enumerate(span.layers) for name, _ in layer.named_parameters()}
    assert set(engine.parameters) == expected


@pytest.mark.parametrize("way", ["gram", "materialised"])
def test_norms_are_those_of_each_unit_alone(span: TinySpan, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (traces, experts):
        monkeypatch.setattr(module, "gram_is_cheaper", lambda **_: way == "gram")
    monkeypatch.setattr(matrices, "MATERIALISED_BYTES", 10_000)  # several parts
    expected = _expected(span).norm(dim=1)
    assert ((_norms(span) - expected).abs() <= EXACT * expected).all()


def test_the_clipped_sum_is_that_of_clipped_gradients_one_by_one(span: TinySpan) -> None:
    rows = _expected(span)
    clip = float(rows.norm(dim=1).median())  # some are clipped and some are not
    expected = (rows * (clip / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(dim=0)
    got = flat(span.clipped_sum(BookKeeping(span.layers), span.units, max_grad_norm=clip))
    assert (got - expected).norm() <= EXACT * expected.norm() * 1.5  # the clip's own margin is 1e-5 of it


def test_each_weight_of_the_span_is_summed_right(span: TinySpan) -> None:
    """Small weights (sinks, biases, norms) could be wrong without the whole showing it."""
    plain = span.one_by_one()
    sums = span.clipped_sum(BookKeeping(span.layers), span.units, max_grad_norm=1e6)
    for name, total in sums.items():
        expected = torch.stack([grads[name] for grads in plain]).sum(dim=0)
        assert (total - expected).norm() <= 2 * EXACT * expected.norm() + 1e-7, name


def test_padding_does_not_change_a_unit(build: Build) -> None:
    """Alone a record has no padding; beside a longer one it has. Its gradient is the same."""
    span = TinySpan(build())
    engine = BookKeeping(span.layers)
    short = span.lengths.index(min(span.lengths))
    padded = flat(span.clipped_sum(engine, [short], max_grad_norm=1e6))
    span.tokens, span.mask = span.tokens[:, : min(span.lengths)], span.mask[:, : min(span.lengths)]
    bare = flat(span.clipped_sum(engine, [short], max_grad_norm=1e6))
    assert (padded - bare).norm() <= EXACT * bare.norm()


def test_what_stands_in_the_padding_does_not_matter(span: TinySpan) -> None:
    engine = BookKeeping(span.layers)
    before = flat(span.clipped_sum(engine, span.units, max_grad_norm=1.0))
    span.tokens = torch.where(span.mask, span.tokens, 77)
    after = flat(span.clipped_sum(engine, span.units, max_grad_norm=1.0))
    assert (before - after).norm() <= 1e-6 * before.norm()  # padding is routed to experts too, and changes their order


def test_one_person_with_one_record_is_that_record(build: Build) -> None:
    """A row that only fills up adds nothing to a person."""
    person = TinySpan(build(), lengths=(6, 0, 9, 0), rows_per_unit=2)
    record = TinySpan(build(), lengths=(6, 0, 9, 0))
    theirs = flat(person.clipped_sum(BookKeeping(person.layers), [0, 1], max_grad_norm=0.5))
    ours = flat(record.clipped_sum(BookKeeping(record.layers), [0, 2], max_grad_norm=0.5))
    assert (theirs - ours).norm() <= 1e-6 * ours.norm()


# precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_layers_are_summed_in_full_precision(build: Build, way: str) -> None:
    """One unit at a time the clip can be seen: the sum of one unit is that unit, clipped."""
    span = TinySpan(build().bfloat16()) if way == "weights" else TinySpan(build(), autocast=True)
    engine = BookKeeping(span.layers)
    for unit in span.units:
        total = flat(span.clipped_sum(engine, [unit], max_grad_norm=0.1))
        assert 0.1 * (1 - 1e-4) <= total.norm() <= 0.1
    expected = _expected(span).norm(dim=1)
    assert ((_norms(span) - expected).abs() <= COARSE * expected).all()


@pytest.mark.parametrize("module", [nn.LayerNorm(32), nn.RMSNorm(32), GemmaRMSNorm(32)], ids=lambda m: type(m).__name__)
def test_norm_layers_of_either_convention_are_exact(module: nn.Module) -> None:
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(32, generator=source))
            weight[0] = 0.0  # dividing the output by the weight would not do
    hidden = torch.randn(3, 4, 32, generator=source)
    target = torch.randn(3, 4, 32, generator=source)
    for unit, norm in enumerate(_norms_of(module.eval(), hidden, target)):
        grads = torch.autograd.grad((module(hidden[unit]) * target[unit]).sum(), list(module.parameters()))
        expected = torch.cat(grads).double().norm()
        assert abs(norm - expected) <= EXACT * expected


def _norms_of(module: nn.Module, hidden: Tensor, target: Tensor) -> Tensor:
    def losses(units: object) -> Tensor:
        result: Tensor = module(hidden.requires_grad_()) * target
        return result.sum(dim=(1, 2))

    return BookKeeping([module]).norms(losses=losses, units=len(hidden))


@pytest.mark.parametrize("shrink", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_rounding_never_makes_a_cancelling_gradient_look_shorter(shrink: float) -> None:
    """Positions that see the same and pull in opposite directions: large terms, a small gradient."""
    source = torch.Generator().manual_seed(2)
    module = nn.Linear(200, 300, bias=False).eval()
    hidden = torch.randn(1, 1, 200, generator=source).expand(40, 64, 200).clone()
    target = torch.randn(40, 64, 300, generator=source)
    target -= (1 - shrink) * target.mean(dim=1, keepdim=True)
    exact = torch.bmm(target.double().transpose(1, 2), hidden.double()).flatten(1).norm(dim=1)
    assert gram_is_cheaper(positions=64, inputs=200, outputs=300)
    assert (_norms_of(module, hidden, target) >= exact * (1 - 1e-6)).all()
    engine = BookKeeping([module])
    for unit in range(3):
        one, its = hidden[[unit]].detach(), target[[unit]]
        sums = engine.zero_sums()
        engine.clip_into(
            sums,
            losses=lambda _, one=one, its=its: (module(one.requires_grad_()) * its).sum((1, 2)),
            units=1,
            max_grad_norm=1e-3,
        )
        assert flat(sums).norm() <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize(("positions", "inputs", "outputs", "gram"), [(64, 576, 1536, True), (512, 576, 1536, False)])
def test_the_cheaper_way_is_chosen(*, positions: int, inputs: int, outputs: int, gram: bool) -> None:
    assert gram_is_cheaper(positions=positions, inputs=inputs, outputs=outputs) is gram


def test_the_way_is_chosen_for_all_positions_of_a_person() -> None:
    """Eight records of 64 tokens are 512 positions: forming the gradient is cheaper than their Gram matrices."""
    module = nn.Linear(64, 64, bias=False).eval()
    asked: list[int] = []

    def cheaper(*, positions: int, inputs: int, outputs: int) -> bool:
        asked.append(positions)
        return gram_is_cheaper(positions=positions, inputs=inputs, outputs=outputs)

    hidden = torch.randn(16, 64, 64, generator=torch.Generator().manual_seed(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "gram_is_cheaper", cheaper)
        BookKeeping([module]).norms(
            losses=lambda _: module(hidden.requires_grad_()).square().view(2, -1).sum(1), units=2
        )
    assert asked == [512]
    assert not gram_is_cheaper(positions=512, inputs=64, outputs=64)


# experts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_pairs_are_grouped_by_expert_and_unit_and_none_is_lost(per_token: int) -> None:
    source = torch.Generator().manual_seed(per_token)
    routed = torch.rand(4 * 15, 8, generator=source).topk(per_token).indices  # 4 units of 15 tokens, 8 experts
    routed[:15, 0] = 2  # one unit that goes to one expert
    groups = Groups.of(routed, experts=8, units=4)
    assert sum(groups.counts) == len(groups.tokens) == 60 * per_token
    chosen = routed.flatten()[groups.order]
    assert (chosen.diff() >= 0).all()
    pairs = {(int(token), int(expert)) for token, expert in zip(groups.tokens, chosen, strict=True)}
    assert pairs == {(token, int(expert)) for token in range(60) for expert in routed[token]}
    met: list[int] = []
    for which, places, filler in groups.batches():
        for group, row, odd in zip(which, places, filler, strict=True):
            mine = row[~odd]
            assert len(mine) == groups.sizes[group]
            assert {int(chosen[place]) for place in row} == {int(chosen[row[0]])}  # filler is the group's own
            assert {int(groups.tokens[place]) // 15 for place in row} == {int(groups.owners[group])}
            assert len(row) <= 1.5 * groups.sizes[group] + 1
            met.extend(mine.tolist())
    assert sorted(met) == list(range(60 * per_token))


def test_experts_that_see_no_token_of_the_batch_get_a_zero() -> None:
    span = TinySpan(tiny_gpt_oss(), lengths=(2,), start=1, stop=2)
    sums = span.clipped_sum(BookKeeping(span.layers), [0], max_grad_norm=1.0)
    used = sums["0.mlp.experts.gate_up_proj"].flatten(1).norm(dim=1) > 0
    assert used.any()
    assert not used.all()


def test_the_model_is_as_it_was_after_a_pass() -> None:
    span = TinySpan(tiny_gpt_oss())
    before = [dict(vars(module)) for layer in span.layers for module in layer.modules()]
    loss = span.losses(span.units)
    span.clipped_sum(BookKeeping(span.layers), span.units, max_grad_norm=1.0)
    after = [dict(vars(module)) for layer in span.layers for module in layer.modules()]
    assert [list(one) for one in before] == [list(one) for one in after]
    assert torch.equal(loss, span.losses(span.units))
    assert all(weight.grad is None and weight.requires_grad for layer in span.layers for weight in layer.parameters())


def test_frozen_experts_and_sinks_are_left_alone() -> None:
    """What is trained beside them is exact, and the pass goes through the modules' own code."""
    span = TinySpan(tiny_gpt_oss())
    for layer in span.layers:
        layer.get_submodule("mlp.experts").get_parameter("down_proj").requires_grad_(False)
        layer.get_submodule("mlp.experts").get_parameter("gate_up_proj_bias").requires_grad_(False)
        layer.get_submodule("self_attn").get_parameter("sinks").requires_grad_(False)
    engine = BookKeeping(span.layers)
    assert {name.rpartition(".")[2] for name in engine.parameters} >= {"gate_up_proj", "down_proj_bias", "weight"}
    assert not {name.rpartition(".")[2] for name in engine.parameters} & {"down_proj", "gate_up_proj_bias", "sinks"}
    grads = torch.autograd.grad(span.losses([0]).sum(), list(engine.parameters.values()))
    sums = span.clipped_sum(engine, [0], max_grad_norm=1e6)
    expected = torch.cat([grad.double().flatten() for grad in grads])
    got = torch.cat([sums[name].flatten() for name in engine.parameters])
    assert (got - expected).norm() <= EXACT * expected.norm()
