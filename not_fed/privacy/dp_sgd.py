"""The parts of a DP-SGD step that every engine shares: clip each unit's gradient, add noise once to the sum, divide.

A unit is what neighbouring data sets differ by: a record, or a person with several. The engines (`engine`) find each
unit's gradient; the factor that clips it and the noise come from here, and from nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from not_fed.errors import FitError, InputError
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.noise import gaussian
from not_fed.privacy.randomness import RandomSource

CLIP_MARGIN = 1e-5  # norms are trusted to this relative error, so that rounding cannot carry a record above the clip
SUM_MARGIN = 1e-3  # of the sum of a step's clips: rounding of the layers' own arithmetic
GRID = 2.0**-12  # of the noise's standard deviation; released sums are multiples of it


class BadClip(InputError):
    """The clip is not a positive, finite number."""

    code = "clip"


class ClipExceeded(FitError):
    """A step's clipped sum is longer than clipping allows, so its clip cannot be trusted."""

    code = "clip-exceeded"


def clip_factor(norms: Tensor, *, max_grad_norm: float) -> Tensor:
    """By how much to scale each unit's gradient so that none is longer than the clip.

    Args:
        norms: one L2 norm per unit, shape (units,), any float dtype.
        max_grad_norm: the clip, in the units of the gradients.
    Returns:
        shape (units,), float64, each between 0 and 1.
    Raises:
        BadClip: max_grad_norm is not a positive, finite number.
    Guarantees:
        factor * norm <= max_grad_norm, also when the norm was measured up to 1e-5 too short. A unit whose norm is NaN
        or infinite gets 0.
    Proved by: tests/unit/test_dp_sgd.py::test_removing_any_unit_moves_the_sum_by_at_most_the_clip
    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, Algorithm 1.

    >>> clip_factor(torch.tensor([0.5, 4.0, torch.nan]), max_grad_norm=2.0)
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not 0 < max_grad_norm < math.inf:
        raise BadClip(
            where="plan, field max_grad_norm",
            expected="a positive, finite number",
            got=repr(max_grad_norm),
            hint="nothing was trained",
        )
    exact = norms.double()
    factors = (max_grad_norm / (exact * (1 + CLIP_MARGIN))).clamp(max=1.0)
    return factors.where(exact.isfinite(), 0.0)


def zero_sums(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where a step's micro-batches add up: a float64 zero tensor per trained weight. An empty sample stays so."""
    return {
        name: torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        for name, weight in parameters.items()
    }


def require_bounded(sums: Mapping[str, Tensor], *, units: int, max_grad_norm: float) -> None:
    """A check that costs nothing, for every step before the noise: n units, clipped, sum to at most n clips.

    Args:
        sums: clipped sums of one step by weight name.
        units: how many units of privacy were sampled.
        max_grad_norm: the clip.
    Raises:
        ClipExceeded: they are longer, or not numbers. The sums must not be used.
    Proved by: tests/unit/test_dp_sgd.py::test_a_sum_longer_than_its_units_allow_is_refused
    """
    if not float(l2_norm(sums)) <= units * max_grad_norm * (1 + SUM_MARGIN):  # also when it is NaN
        raise ClipExceeded(
            where="clipped sum of a step",
            expected="at most the number of units times the clip",
            got="more",
            hint="the engine does not bound what it claims to; the step was not taken. Please report this",
        )


def l2_norm(grads: Mapping[str, Tensor]) -> Tensor:
    """Over all weights together, float64."""
    lengths = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads.values()]
    whole: Tensor = torch.linalg.vector_norm(torch.stack([length.cpu() for length in lengths]))
    return whole


def noisy_gradient(sums: Mapping[str, Tensor], *, plan: DpPlan, source: RandomSource) -> dict[str, Tensor]:
    """What a step may let out: the clipped sum plus noise, on a public grid, divided by the plan's divisor.

    Args:
        sums: clipped sums of one step by weight name, float64; zeros when no unit was sampled.
        plan: noise multiplier, clip and divisor.
        source: where randomness comes from; the operating system outside tests.
    Returns:
        float32 gradients for the optimiser, on the devices of the sums.
    Guarantees:
        Gaussian noise of standard deviation noise_multiplier * max_grad_norm on every coordinate, fresh each call; the
        noisy sum is a multiple of that deviation / 4096 before the division, so that the low bits of floating point
        numbers say nothing about the sum underneath.
    Proved by: tests/unit/test_dp_sgd.py::test_the_noise_of_a_step_has_the_deviation_of_the_plan
    Source: Mironov 2012, On Significance of the Least Significant Bits for Differential Privacy.
    """
    deviation = plan.noise_multiplier * plan.max_grad_norm
    grid = deviation * GRID
    released = {}
    for name, total in sums.items():
        noise = gaussian(total.shape, std=deviation, source=source).to(total.device)
        ticks = noise.add_(total).div_(grid).round_()
        released[name] = ticks.mul_(grid / plan.divisor).float()
    return released
