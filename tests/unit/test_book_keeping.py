"""Norms and sums from activations and output gradients are those of per-record gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.pytorch_utils import Conv1D

from not_fed.privacy import book_keeping
from not_fed.privacy.book_keeping import UnknownModule, find_taps, gram_is_cheaper
from not_fed.privacy.dp_sgd import SpanGradients
from tests.support.spans import TinySpan, flat
from tests.support.tiny import tiny_gpt2, tiny_gpt_oss, tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3

FAMILIES = [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_qwen3, tiny_mistral]
EXACT = 1e-5  # relative
Build = Callable[[], PreTrainedModel]


@pytest.fixture(params=FAMILIES, ids=lambda build: build.__name__)
def span(request: pytest.FixtureRequest) -> TinySpan:
    build: Build = request.param
    return TinySpan(build())


def test_every_weight_of_the_span_is_trained_under_its_own_name(span: TinySpan) -> None:
    engine = SpanGradients(span.layers)
    expected = {f"{i}.{name}" for i, layer in enumerate(span.layers) for name, _ in layer.named_parameters()}
    assert set(engine.parameters) == expected


@pytest.mark.parametrize("way", ["gram", "materialised"])
def test_norms_are_those_of_each_record_alone(span: TinySpan, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_keeping, "gram_is_cheaper", lambda **_: way == "gram")
    monkeypatch.setattr(book_keeping, "MATERIALISED_BYTES", 10_000)  # several parts
    engine = SpanGradients(span.layers)
    span.capture(engine, span.records)
    expected = torch.stack([flat(grads).norm() for grads in span.one_by_one()])
    assert ((engine.norms() - expected).abs() <= EXACT * expected).all()


def test_the_clipped_sum_is_that_of_clipped_gradients_one_by_one(span: TinySpan) -> None:
    rows = torch.stack([flat(grads) for grads in span.one_by_one()])
    clip = float(rows.norm(dim=1).median())  # some are clipped and some are not
    expected = (rows * (clip / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(dim=0)
    got = flat(span.clipped_sum(SpanGradients(span.layers), span.records, max_grad_norm=clip))
    assert (got - expected).norm() <= EXACT * expected.norm() * 1.5  # the clip's own margin is 1e-5 of it


def test_opacus_agrees(span: TinySpan) -> None:
    engine = SpanGradients(span.layers)
    span.capture(engine, span.records)
    ours = engine.norms()
    oracle = copy.deepcopy(span)
    watched = GradSampleModule(nn.ModuleList(oracle.layers), strict=False, loss_reduction="sum")
    for module in oracle.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    oracle.model.train()  # Opacus watches nothing in evaluation mode
    torch.autograd.backward(oracle.losses(oracle.records).sum())
    samples = [weight.grad_sample.double().flatten(1) for weight in watched.parameters()]
    theirs = torch.cat(samples, dim=1).norm(dim=1)
    assert len(samples) == len(engine.parameters)
    assert ((ours - theirs).abs() <= EXACT * theirs).all()


def test_padding_does_not_change_a_record(span: TinySpan) -> None:
    """Alone a record has no padding; beside a longer one it has. Its gradient is the same."""
    engine = SpanGradients(span.layers)
    short = span.lengths.index(min(span.lengths))
    padded = flat(span.clipped_sum(engine, [short], max_grad_norm=1e6))
    span.tokens, span.mask = span.tokens[:, : min(span.lengths)], span.mask[:, : min(span.lengths)]
    bare = flat(span.clipped_sum(engine, [short], max_grad_norm=1e6))
    assert (padded - bare).norm() <= EXACT * bare.norm()


def test_what_stands_in_the_padding_does_not_matter(span: TinySpan) -> None:
    engine = SpanGradients(span.layers)
    before = flat(span.clipped_sum(engine, span.records, max_grad_norm=1.0))
    span.tokens = torch.where(span.mask, span.tokens, 77)
    after = flat(span.clipped_sum(engine, span.records, max_grad_norm=1.0))
    assert torch.equal(before, after)


def test_bfloat16_layers_are_summed_in_full_precision() -> None:
    span = TinySpan(tiny_llama().bfloat16())
    engine = SpanGradients(span.layers)
    for record in span.records:  # one at a time the clip can be seen: the sum of one record is that record, clipped
        total = flat(span.clipped_sum(engine, [record], max_grad_norm=0.1))
        assert 0.1 * (1 - 1e-4) <= total.norm() <= 0.1
    expected = torch.stack([flat(grads).norm() for grads in span.one_by_one()])
    span.capture(engine, span.records)
    assert ((engine.norms() - expected).abs() <= 0.03 * expected).all()


@pytest.mark.parametrize("module", [nn.LayerNorm(32), nn.RMSNorm(32), GemmaRMSNorm(32)], ids=lambda m: type(m).__name__)
def test_norm_layers_of_either_convention_are_exact(module: nn.Module) -> None:
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(32, generator=source))
            weight[0] = 0.0  # dividing the output by the weight would not do
    hidden = torch.randn(3, 4, 32, generator=source, requires_grad=True)
    target = torch.randn(3, 4, 32, generator=source)
    engine = SpanGradients([module.eval()])
    with engine.capture():
        torch.autograd.backward((module(hidden) * target).sum())
    for record, norm in enumerate(engine.norms()):
        grads = torch.autograd.grad((module(hidden[record]) * target[record]).sum(), list(module.parameters()))
        expected = torch.cat(grads).double().norm()
        assert abs(norm - expected) <= EXACT * expected


def _engine_on(module: nn.Linear, hidden: Tensor, target: Tensor) -> SpanGradients:
    engine = SpanGradients([module])
    with engine.capture():
        torch.autograd.backward((module(hidden.requires_grad_()) * target).sum())
    return engine


@pytest.mark.parametrize("shrink", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_rounding_never_makes_a_cancelling_gradient_look_shorter(shrink: float) -> None:
    """Positions that see the same and pull in opposite directions: large terms, a small gradient."""
    source = torch.Generator().manual_seed(2)
    module = nn.Linear(200, 300, bias=False).eval()
    hidden = torch.randn(1, 1, 200, generator=source).expand(40, 64, 200).clone()
    target = torch.randn(40, 64, 300, generator=source)
    target -= (1 - shrink) * target.mean(dim=1, keepdim=True)
    exact = torch.bmm(target.double().transpose(1, 2), hidden.double()).flatten(1).norm(dim=1)
    engine = _engine_on(module, hidden, target)
    assert gram_is_cheaper(positions=64, inputs=200, outputs=300)
    assert (engine.norms() >= exact * (1 - 1e-6)).all()
    for record in range(3):
        sums = (one := _engine_on(module, hidden[[record]], target[[record]])).zero_sums()
        one.clip_into(sums, max_grad_norm=1e-3, records=1)
        assert flat(sums).norm() <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize(("positions", "inputs", "outputs", "gram"), [(64, 576, 1536, True), (512, 576, 1536, False)])
def test_the_cheaper_way_is_chosen(*, positions: int, inputs: int, outputs: int, gram: bool) -> None:
    assert gram_is_cheaper(positions=positions, inputs=inputs, outputs=outputs) is gram


def test_experts_routers_and_sinks_are_refused() -> None:
    span = TinySpan(tiny_gpt_oss())
    with pytest.raises(UnknownModule, match="GptOssAttention with weights sinks") as refused:
        SpanGradients(span.layers)
    assert "no rule" in refused.value.hint
    for layer in span.layers:
        layer.get_submodule("self_attn").requires_grad_(requires_grad=False)
    with pytest.raises(UnknownModule, match=r"GptOssTopKRouter|GptOssExperts"):
        SpanGradients(span.layers)


class LoudLinear(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


class SquaredRMSNorm(nn.Module):
    """Called a norm, but its weight does not simply multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.weight.square()


class MixingRMSNorm(SquaredRMSNorm):
    """Called a norm, but one record's result depends on the others."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * (hidden - hidden.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    "module",
    [LoudLinear(8, 8), SquaredRMSNorm(), MixingRMSNorm(), nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False),
     nn.Embedding(8, 8), nn.Conv1d(8, 8, 1), nn.GRU(8, 8), nn.LayerNorm([2, 8])],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_a_module_without_a_rule_is_refused(module: nn.Module) -> None:
    with pytest.raises(UnknownModule):
        find_taps([nn.Linear(8, 8), module])


def test_tied_weights_are_refused() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    with pytest.raises(UnknownModule, match="layer module 1"):
        find_taps([first, second])
    with pytest.raises(UnknownModule):
        find_taps([first, first])


def test_frozen_weights_are_left_alone() -> None:
    """What is not trained needs no rule; what is trained beside a frozen bias is trained alone."""
    linear, oracle = nn.Linear(8, 8), nn.Linear(8, 8)
    linear.bias.requires_grad = False
    oracle.requires_grad_(requires_grad=False)
    conv = Conv1D(4, 8)
    conv.weight.requires_grad = False
    engine = SpanGradients(
        [nn.Sequential(linear, oracle, nn.Embedding(3, 3).requires_grad_(requires_grad=False), conv)]
    )
    assert set(engine.parameters) == {"0.0.weight", "0.3.bias"}
