"""The promise of DP-SGD: no record moves the sum by more than the clip, and the noise is the plan's."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.book_keeping import MatrixRule, UnknownModule
from not_fed.privacy.dp_sgd import (
    BadClip,
    SentinelDisagrees,
    SpanGradients,
    SpanInTraining,
    check_against_autograd,
    clip_factor,
    noisy_gradient,
)
from not_fed.privacy.randomness import OperatingSystem
from not_fed.privacy.sampling import poisson_subset
from tests.support.seeded import Seeded
from tests.support.spans import TinySpan, flat
from tests.support.tiny import tiny_gpt2, tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3

PLAN = DpPlan(sample_rate=0.5, steps=3, noise_multiplier=1.5, max_grad_norm=0.5, divisor=7.0, delta=1e-5)
BUILDERS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "qwen2": tiny_qwen2}
# From nothing to what overflows; NaN and infinity count as zero.
SCALES = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e-30, 1e15, 1e30, math.inf, -math.inf, math.nan]))


@functools.cache
def _span(family: str, dtype: torch.dtype) -> TinySpan:
    return TinySpan(BUILDERS[family]().to(dtype), start=2, stop=4)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["float64", "float32"])
@pytest.mark.parametrize("family", BUILDERS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_removing_any_record_moves_the_sum_by_at_most_the_clip(
    family: str, dtype: torch.dtype, slack: float, data: st.DataObject
) -> None:
    """Through the real forward and backward pass, whatever the records' losses are scaled by."""
    span = _span(family, dtype)
    clip = data.draw(st.floats(1e-3, 1e3), label="clip")
    span.scales = torch.tensor(data.draw(st.lists(SCALES, min_size=5, max_size=5), label="scales"), dtype=dtype)
    records = data.draw(st.permutations(span.records).map(lambda all_: all_[:3]), label="records")
    engine = SpanGradients(span.layers)
    whole = flat(span.clipped_sum(engine, records, max_grad_norm=clip))
    assert whole.isfinite().all()
    for record in records:
        others = flat(span.clipped_sum(engine, [r for r in records if r != record], max_grad_norm=clip))
        assert (whole - others).norm() <= clip * (1 + slack)


def test_a_record_longer_than_the_clip_arrives_with_the_length_of_the_clip() -> None:
    """The bound is reached: clipping does not simply remove everything."""
    span = _span("llama", torch.float64)
    span.scales = torch.full((5,), 50.0, dtype=torch.float64)
    total = flat(span.clipped_sum(SpanGradients(span.layers), [1], max_grad_norm=2.0))
    assert 2.0 * (1 - 2e-5) <= total.norm() <= 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_record_with_a_nan_or_an_infinity_counts_as_zero(bad: float) -> None:
    span = TinySpan(tiny_llama())
    engine = SpanGradients(span.layers)
    without = flat(span.clipped_sum(engine, [0, 1, 3], max_grad_norm=1.0))
    span.scales = torch.tensor([1.0, 1.0, bad, 1.0, 1.0])
    with_it = flat(span.clipped_sum(engine, [0, 1, 2, 3], max_grad_norm=1.0))
    assert without.norm() > 0.5
    assert (with_it - without).norm() <= 1e-5


def test_an_infinity_in_an_activation_counts_as_zero() -> None:
    layer = nn.Linear(2, 1, bias=False).eval()
    engine = SpanGradients([layer])
    hidden = torch.tensor([[[3.0, 4.0]], [[math.inf, 1.0]]], requires_grad=True)
    with engine.capture():
        torch.autograd.backward(layer(hidden).sum())
    sums = engine.zero_sums()
    engine.clip_into(sums, max_grad_norm=1.0, records=2)
    assert torch.allclose(sums["0.weight"], torch.tensor([[0.6, 0.8]], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_split_into_micro_batches_does_not_matter(micro_batch: int) -> None:
    span = TinySpan(tiny_qwen2())
    engine = SpanGradients(span.layers)
    whole = flat(span.clipped_sum(engine, span.records, max_grad_norm=3.0))
    parts = flat(span.clipped_sum(engine, span.records, max_grad_norm=3.0, micro_batch=micro_batch))
    assert (whole - parts).norm() <= 1e-6 * whole.norm()


def test_a_capture_is_added_once() -> None:
    span = TinySpan(tiny_llama())
    engine = SpanGradients(span.layers)
    sums = span.clipped_sum(engine, span.records, max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="already added"):
        engine.clip_into(sums, max_grad_norm=1.0, records=5)
    with pytest.raises(RuntimeError):
        engine.norms()


def test_a_wrong_count_of_records_is_refused() -> None:
    span = TinySpan(tiny_llama())
    engine = SpanGradients(span.layers)
    span.capture(engine, [0, 1])
    with pytest.raises(UnknownModule, match="2 rows where 3 records"):
        engine.clip_into(engine.zero_sums(), max_grad_norm=1.0, records=3)


def test_sums_are_kept_in_float64_and_start_at_zero() -> None:
    engine = SpanGradients(TinySpan(tiny_llama()).layers)
    sums = engine.zero_sums()
    assert {total.dtype for total in sums.values()} == {torch.float64}
    assert not any(total.any() for total in sums.values())
    assert {name: total.shape for name, total in sums.items()} == {n: p.shape for n, p in engine.parameters.items()}


def test_weights_require_a_gradient_again_after_the_pass_even_a_failed_one() -> None:
    span = TinySpan(tiny_llama())
    engine = SpanGradients(span.layers)
    with pytest.raises(ZeroDivisionError), engine.capture():
        assert not any(weight.requires_grad for weight in engine.parameters.values())
        raise ZeroDivisionError
    assert all(weight.requires_grad for weight in engine.parameters.values())
    assert all(weight.grad is None for weight in engine.parameters.values())
    assert not any(module._forward_hooks for layer in span.layers for module in layer.modules())
    with pytest.raises(RuntimeError, match="nothing captured"):
        engine.norms()


# what the engine refuses ---------------------------------------------------------------------------------------------


def test_a_span_in_training_mode_is_refused() -> None:
    """GPT-2 drops activations out at random there."""
    span = TinySpan(tiny_gpt2())
    engine = SpanGradients(span.layers)
    span.model.train()
    with pytest.raises(SpanInTraining):
        span.capture(engine, span.records)


def test_a_span_without_a_trained_weight_is_refused() -> None:
    with pytest.raises(UnknownModule, match="weights that require a gradient"):
        SpanGradients([nn.Linear(2, 2).requires_grad_(requires_grad=False)])


class Odd(nn.Module):
    """A layer that uses its parts in an odd way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how

    def forward(self, hidden: Tensor) -> Any:  # noqa: ANN401  # what calling a module is typed as
        if self.how == "twice":
            return self.second(self.first(self.first(hidden)))
        if self.how == "never":
            return self.first(hidden)
        if self.how == "unused":
            return self.first(hidden) + 0 * self.second(hidden).detach()
        if self.how == "overwritten":
            result = self.first(inner := hidden.clone())
            inner.mul_(2)
            return self.second(result)
        if self.how == "flattened":
            return self.second(self.first(hidden.flatten(0, 1))).reshape(hidden.shape)
        if self.how == "keyword":
            return self.second(self.first(input=hidden))
        return self.second(self.first(hidden)) + linear(hidden, self.first.weight)  # "behind"

    def losses(self, records: Sequence[int]) -> Tensor:
        hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))[list(records)].requires_grad_()
        result: Tensor = self(hidden)
        return result.square().sum(dim=(1, 2))


@pytest.mark.parametrize("how", ["twice", "never", "unused", "overwritten", "flattened", "keyword"])
def test_a_module_used_in_an_odd_way_is_refused(how: str) -> None:
    layer = Odd(how).eval()
    engine = SpanGradients([layer])
    with pytest.raises(UnknownModule, match="layer module 0"):
        with engine.capture():
            torch.autograd.backward(layer.losses([0, 1]).sum())
        engine.clip_into(engine.zero_sums(), max_grad_norm=1.0, records=2)
    assert all(weight.requires_grad for weight in engine.parameters.values())


def test_a_pass_without_gradients_is_refused() -> None:
    layer = nn.Linear(8, 8).eval()
    with pytest.raises(UnknownModule, match="input must require one"), SpanGradients([layer]).capture():
        layer(torch.zeros(2, 3, 8))


def test_two_backward_passes_in_one_capture_are_refused() -> None:
    layer = nn.Linear(8, 8).eval()
    with pytest.raises(UnknownModule, match="more than one backward"), SpanGradients([layer]).capture():
        result = layer(torch.zeros(2, 3, 8, requires_grad=True)).sum()
        result.backward(retain_graph=True)
        result.backward()


# the sentinel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_qwen3, tiny_mistral])
def test_the_sentinel_is_silent_about_known_families(build: Any) -> None:  # noqa: ANN401  # any of the builders
    span = TinySpan(build())
    check_against_autograd(SpanGradients(span.layers), losses=span.losses)
    low = TinySpan(build().bfloat16())
    check_against_autograd(SpanGradients(low.layers), losses=low.losses)


def test_the_sentinel_catches_a_module_that_is_not_what_its_name_says() -> None:
    """A weight used behind its module's back: no hook can see that, plain autograd does."""
    layer = Odd("behind").eval()
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(SpanGradients([layer]), losses=layer.losses)


@pytest.mark.parametrize("part", ["norm", "sum"])
def test_the_sentinel_catches_a_rule_that_is_wrong_by_one_percent(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norms, sums = MatrixRule.squared_norms, MatrixRule.sums
    if part == "norm":
        monkeypatch.setattr(MatrixRule, "squared_norms", lambda *args: norms(*args) * 1.02)
    else:
        monkeypatch.setattr(MatrixRule, "sums", lambda *args: ((name, total * 1.01) for name, total in sums(*args)))
    span = TinySpan(tiny_llama())
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(SpanGradients(span.layers), losses=span.losses)


def test_the_sentinel_catches_records_that_depend_on_each_other() -> None:
    layer = nn.Linear(8, 8).eval()
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))

    def losses(records: Sequence[int]) -> Tensor:
        result: Tensor = layer(hidden[list(records)].requires_grad_())
        return (result - result.mean(dim=0, keepdim=True) / 2).square().sum(dim=(1, 2))

    with pytest.raises(SentinelDisagrees):
        check_against_autograd(SpanGradients([layer]), losses=losses)


def test_the_sentinel_catches_a_layout_that_does_not_put_records_first() -> None:
    layer = nn.Linear(8, 8).eval()
    hidden = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(4))

    def losses(records: Sequence[int]) -> Tensor:
        result: Tensor = layer(hidden[list(records)].transpose(0, 1).contiguous().requires_grad_())
        return result.square().sum(dim=(0, 2))

    with pytest.raises(SentinelDisagrees):
        check_against_autograd(SpanGradients([layer]), losses=losses)


# clip and noise ------------------------------------------------------------------------------------------------------


@given(norm=st.one_of(st.floats(0), st.just(math.nan)), clip=st.floats(1e-6, 1e6))
def test_a_factor_never_lengthens_and_never_exceeds_the_clip(norm: float, clip: float) -> None:
    factor = float(clip_factor(torch.tensor([norm], dtype=torch.float64), max_grad_norm=clip))
    assert 0 <= factor <= 1
    if math.isfinite(norm):
        assert factor * norm <= clip
        assert factor == 1.0 or factor * norm >= clip * (1 - 2e-5) or norm > 1e300
    else:
        assert factor == 0.0


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_that_is_no_positive_number_is_refused(clip: float) -> None:
    with pytest.raises(BadClip):
        clip_factor(torch.ones(1), max_grad_norm=clip)


def test_the_noise_of_a_step_has_the_deviation_of_the_plan() -> None:
    zeros = {"a": torch.zeros(300, 400, dtype=torch.float64), "b": torch.zeros(80_000, dtype=torch.float64)}
    released = flat(noisy_gradient(zeros, plan=PLAN, source=Seeded()))
    deviation = PLAN.noise_multiplier * PLAN.max_grad_norm / PLAN.divisor
    assert abs(released.std() / deviation - 1) < 6 / math.sqrt(2 * len(released))
    assert abs(released.mean()) < 6 * deviation / math.sqrt(len(released))


def test_the_noise_is_added_to_the_sum_and_both_are_divided() -> None:
    sums = {"a": torch.full((100_000,), 70.0, dtype=torch.float64)}
    released = noisy_gradient(sums, plan=PLAN, source=Seeded())["a"]
    assert released.dtype is torch.float32
    assert abs(float(released.double().mean()) - 10.0) < 6 * 0.75 / 7 / math.sqrt(100_000)
    assert (sums["a"] == 70.0).all()  # nothing is changed under the caller


def test_a_released_sum_lies_on_the_public_grid() -> None:
    sums = {"a": torch.linspace(-3, 3, 20_000, dtype=torch.float64)}
    released = noisy_gradient(sums, plan=PLAN, source=Seeded())["a"].double()
    ticks = released * PLAN.divisor / (PLAN.noise_multiplier * PLAN.max_grad_norm * 2.0**-12)
    assert (ticks - ticks.round()).abs().max() < 0.01


def test_an_empty_sample_is_a_step_of_noise_alone() -> None:
    engine = SpanGradients(TinySpan(tiny_llama()).layers)
    released = noisy_gradient(engine.zero_sums(), plan=PLAN, source=Seeded())
    assert {name: grad.shape for name, grad in released.items()} == {n: p.shape for n, p in engine.parameters.items()}
    assert 0.09 < flat(released).std() < 0.12  # 1.5 * 0.5 / 7


def test_two_steps_share_no_noise() -> None:
    zeros = {"a": torch.zeros(1000, dtype=torch.float64), "b": torch.zeros(1000, dtype=torch.float64)}
    source = OperatingSystem()
    steps = [noisy_gradient(zeros, plan=PLAN, source=source)[name] for _ in range(2) for name in ("a", "b")]
    for i, one in enumerate(steps):
        for other in steps[:i]:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.25


def test_no_global_random_state_is_read_or_set() -> None:
    """Same global state before and after; and setting it does not make steps repeat."""
    span = TinySpan(tiny_llama())

    def step() -> Tensor:
        engine = SpanGradients(span.layers)
        records = poisson_subset(5, sample_rate=0.9, source=OperatingSystem()) or [0]
        sums = span.clipped_sum(engine, records, max_grad_norm=PLAN.max_grad_norm)
        return flat(noisy_gradient(sums, plan=PLAN, source=OperatingSystem()))

    def states() -> list[str]:
        return [repr(torch.get_rng_state().tolist()), repr(np.random.get_state()), repr(random.getstate())]  # noqa: NPY002

    before = states()
    torch_state = torch.get_rng_state()
    first = step()
    assert states() == before
    torch.set_rng_state(torch_state)
    assert not torch.equal(first, step())
