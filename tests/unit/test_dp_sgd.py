"""The promise of DP-SGD: no unit of privacy moves the sum by more than the clip, and the noise is the plan's."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.dp_sgd import BadClip, ClipExceeded, clip_factor, noisy_gradient, require_bounded, zero_sums
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.randomness import OperatingSystem
from not_fed.privacy.sampling import poisson_subset
from tests.support.seeded import Seeded
from tests.support.spans import TinySpan, flat
from tests.support.tiny import tiny_gpt2, tiny_gpt_oss, tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3

PLAN = DpPlan(sample_rate=0.5, steps=3, noise_multiplier=1.5, max_grad_norm=0.5, divisor=7.0, delta=1e-5)
FAMILIES = [tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3, tiny_gpt2, tiny_gpt_oss]
# How layers compute, and how far rounding in them may go; in bfloat16 a unit's gradient varies with its company.
PRECISIONS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 2e-2}
# From nothing to what overflows; NaN and infinity count as zero.
SCALES = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e-30, 1e15, 1e30, math.inf, -math.inf, math.nan]))
Build = Callable[[], PreTrainedModel]


@functools.cache
def _span(build: Build, unit: str, precision: str) -> TinySpan:
    model = build()
    if precision == "float64":
        model = model.double()
        model.config._experts_implementation = "eager"  # the usual one has no float64
    make = TinySpan.of_people if unit == "person" else TinySpan
    return make(model, start=2, stop=4, autocast=precision == "bfloat16")


@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking is slow
@given(data=st.data())
def test_removing_any_unit_moves_the_sum_by_at_most_the_clip(build: Build, unit: str, data: st.DataObject) -> None:
    """Through real forward and backward passes, however losses are scaled and the sample is cut into micro-batches."""
    precision = data.draw(st.sampled_from(list(PRECISIONS)), label="precision")
    span = _span(build, unit, precision)
    clip = data.draw(st.floats(1e-3, 1e3), label="clip")
    span.scales = torch.tensor(data.draw(st.lists(SCALES, min_size=5, max_size=5), label="scales"), dtype=torch.float64)
    sample = data.draw(st.permutations(span.units).map(lambda all_: all_[:3]), label="sample")
    engine = BookKeeping(span.layers)

    def total(units: list[int]) -> Tensor:
        cut = data.draw(st.integers(1, 3), label="micro_batch")
        sums = span.clipped_sum(engine, units, max_grad_norm=clip, micro_batch=cut)
        require_bounded(sums, units=len(units), max_grad_norm=clip)
        return flat(sums)

    whole = total(sample)
    assert whole.isfinite().all()
    for one in sample:
        moved = whole - total([other for other in sample if other != one])
        assert moved.norm() <= clip * (1 + PRECISIONS[precision])


@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_a_unit_longer_than_the_clip_arrives_with_the_length_of_the_clip(build: Build, unit: str) -> None:
    """The bound is reached: clipping does not simply remove everything. Also where layers run in bfloat16."""
    for precision in PRECISIONS:
        span = _span(build, unit, precision)
        span.scales = torch.full((5,), 50.0)
        for one in span.units:
            length = flat(span.clipped_sum(BookKeeping(span.layers), [one], max_grad_norm=2.0)).norm()
            assert 2.0 * (1 - 5e-5) <= length <= 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_a_unit_with_a_nan_or_an_infinity_counts_as_zero(build: Build, bad: float) -> None:
    span = TinySpan(build())
    engine = BookKeeping(span.layers)
    without = flat(span.clipped_sum(engine, [0, 1, 3], max_grad_norm=1.0))
    span.scales = torch.tensor([1.0, 1.0, bad, 1.0, 1.0])
    with_it = flat(span.clipped_sum(engine, [0, 1, 2, 3], max_grad_norm=1.0))
    assert without.norm() > 0.5
    assert (with_it - without).norm() <= 1e-5


def test_an_infinity_in_an_activation_counts_as_zero() -> None:
    layer = nn.Linear(2, 1, bias=False).eval()
    engine = BookKeeping([layer])
    hidden = torch.tensor([[[3.0, 4.0]], [[math.inf, 1.0]]])
    sums = engine.zero_sums()
    engine.clip_into(
        sums, losses=lambda units: layer(hidden[list(units)].requires_grad_()).sum((1, 2)), units=2, max_grad_norm=1.0
    )
    assert torch.allclose(sums["0.weight"], torch.tensor([[0.6, 0.8]], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_the_split_into_micro_batches_does_not_matter(build: Build, unit: str, micro_batch: int) -> None:
    span = _span(build, unit, "float32")
    span.scales = None
    engine = BookKeeping(span.layers)
    whole = flat(span.clipped_sum(engine, span.units, max_grad_norm=3.0))
    parts = flat(span.clipped_sum(engine, span.units, max_grad_norm=3.0, micro_batch=micro_batch))
    assert (whole - parts).norm() <= 2e-6 * whole.norm()


def test_sums_are_kept_in_float64_and_start_at_zero() -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    sums = zero_sums(weights)
    assert {total.dtype for total in sums.values()} == {torch.float64}
    assert not any(total.any() for total in sums.values())
    assert {name: total.shape for name, total in sums.items()} == {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize("length", [3.01, math.nan, math.inf])
def test_a_sum_longer_than_its_units_allow_is_refused(length: float) -> None:
    sums = {"a": torch.zeros(4, dtype=torch.float64), "b": torch.full((2, 2), 1.5, dtype=torch.float64)}
    require_bounded(sums, units=2, max_grad_norm=1.5)  # exactly as long as two units can make it
    require_bounded(zero_sums(sums), units=0, max_grad_norm=1.5)
    sums["b"] *= length / 3
    with pytest.raises(ClipExceeded) as refused:
        require_bounded(sums, units=2, max_grad_norm=1.5)
    assert not any(character.isdigit() for character in str(refused.value))  # nothing of the data
    with pytest.raises(ClipExceeded):
        require_bounded({"a": torch.full((1,), 1e-3, dtype=torch.float64)}, units=0, max_grad_norm=1.5)


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
    engine = BookKeeping(TinySpan(tiny_llama()).layers)
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
        engine = BookKeeping(span.layers)
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
