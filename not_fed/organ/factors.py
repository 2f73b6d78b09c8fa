"""Learn a span through low-rank factors: W + scale * B @ A in each linear layer, and the sum is what is written.

What comes out is an organ like any other: full weights, so that the mean over sites is exact, which a mean of factors
is not. What learns is few numbers: little optimiser state, and little noise in a private run. What it buys and where
is measured in docs/benchmarks.md.

The modules are PEFT's. Biases, norms and experts that are no linear layers stay as they are.
Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from not_fed.errors import FitError, InputError
from not_fed.organ.split import SplitModel

SCALE = 2.0  # of the product: alpha is twice the rank, as PEFT's users mostly have it
FACTOR = ".lora_"


class FactorsMissing(InputError):
    """The package that learns through factors is not installed."""

    code = "factors-extra"


class NothingLinear(FitError):
    """These layers have no linear layer that factors could be added to."""

    code = "nothing-linear"


class RankTooHigh(FitError):
    """Factors of this rank are more numbers than the weights that they stand for."""

    code = "rank-too-high"


def require_factors(rank: int) -> None:
    """Raise FactorsMissing when factors are wanted and cannot be had."""
    if not rank:
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise FactorsMissing(
            where=f"rank {rank}", expected="the peft package", got="not installed",
            hint="pip install 'not-fed[peft]', or leave the rank out; nothing was trained",
        ) from None  # fmt: skip


def add_factors(model: SplitModel, *, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Freeze the span and let factors of that rank learn in each of its linear layers; at first they change nothing.

    Args:
        seed: of the random half, A; the other, B, is zero.
    Returns:
        the factors by name.
    Raises:
        FactorsMissing, NothingLinear.
        RankTooHigh: nothing was changed. So a rank never asks for more memory than the span's weights themselves do.
    Proved by: tests/unit/test_factors.py::test_at_first_factors_change_nothing,
        tests/unit/test_factors.py::test_factors_that_are_more_than_the_weights_are_refused
    """
    require_factors(rank)
    from peft import LoraConfig, inject_adapter_in_model

    span = nn.ModuleList(model.span_layers)
    linear = {name: module for name, module in span.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if not linear:
        raise NothingLinear(
            where=f"layers {model.span}", expected="a linear layer", got="none", hint="train without a rank"
        )
    _require_fewer(model, linear.values(), rank=rank)
    config = LoraConfig(
        r=rank, lora_alpha=round(SCALE * rank), lora_dropout=0.0, target_modules=sorted(linear),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )  # fmt: skip
    inject_adapter_in_model(config, span)
    model.model.requires_grad_(requires_grad=False)
    factors = {name: weight for name, weight in model.parameters().items() if FACTOR in name}
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in factors.items():
            weight.requires_grad_()
            if ".lora_A." in name:
                drawn = torch.empty(weight.shape)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=source)
                weight.copy_(drawn)
    model.model.eval()
    return factors


def _require_fewer(model: SplitModel, linear: Iterable[nn.Linear | Conv1D], *, rank: int) -> None:
    shapes = [module.weight.shape for module in linear]
    most = sum(math.prod(shape) for shape in shapes) // sum(map(sum, shapes))
    if rank > most:
        raise RankTooHigh(
            where=f"layers {model.span}", expected=f"a rank of at most {most:,}", got=f"{rank:,}",
            hint="take a lower rank; or train without one, which then has fewer numbers that learn",
        )  # fmt: skip


def merge_factors(model: SplitModel) -> None:
    """Add each product to its weight and take the factors away: the span has its own names again.

    Proved by: tests/unit/test_factors.py::test_what_is_written_is_what_was_trained
    """
    for layer in model.span_layers:
        for name, module in list(layer.named_modules()):
            if hasattr(module, "lora_A"):
                tuned: Any = module
                tuned.merge()
                layer.set_submodule(name, tuned.get_base_layer())
