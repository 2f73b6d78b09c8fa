"""What a server makes of the mean of a round's organs: a step from where the round began towards it.

The difference of mean and start is a pseudo-gradient (of the opposite sign); server momentum, Adam and Yogi treat it as
an optimiser treats a gradient. Everything here is one tensor at a time and a function of its arguments: the same start,
mean and state give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from not_fed.errors import InputError

OptimiserName = Literal["fedavg", "momentum", "adam", "yogi"]
Moment = Literal["m", "v"]

_RATES: Mapping[str, float] = {"fedavg": 1.0, "momentum": 1.0, "adam": 0.01, "yogi": 0.01}


class BadOptimiser(InputError):
    """A server optimiser's setting is out of range, or is not one of this optimiser."""

    code = "bad-optimiser"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimiser:
    """One optimiser with its settings.

    With d the difference of mean and start, all elementwise:

        fedavg      start + rate * d
        momentum    m = momentum * m + d                                   start + rate * m
        adam        m = beta1 * m + (1 - beta1) * d
                    v = beta2 * v + (1 - beta2) * d^2                      start + rate * m / (sqrt(v) + tau)
        yogi        m as adam; v = v - (1 - beta2) * d^2 * sign(v - d^2)   start + rate * m / (sqrt(v) + tau)

    m begins at 0 and v at tau^2; no bias is corrected (Algorithm 2 of the source does neither; Flower's FedAdam begins
    v at 0 and corrects, its FedYogi begins v at 0). Arithmetic is float64, moments are kept in float32, and the step is
    taken from the moments as they are kept, so that it can be taken again.

    Attributes:
        rate: 1 where it is not given, and 0.01 for adam and yogi.
        momentum: of `momentum` alone. beta1, beta2, tau: of `adam` and `yogi` alone.
    Raises:
        BadOptimiser: a setting is out of range.
    Guarantees: with rate 1 and no momentum the aggregate is the mean, bit for bit.
    Proved by: tests/unit/test_optimisers.py::test_rate_one_without_momentum_is_plain_fedavg_bit_for_bit,
        tests/unit/test_optimisers.py::test_momentum_steps_as_flowers_fedavgm_does,
        tests/unit/test_optimisers.py::test_adam_and_yogi_step_as_flowers_do_but_for_what_is_stated
    Source: Reddi et al. 2021, Adaptive Federated Optimization, Algorithm 2; for momentum Hsu et al. 2019, Measuring the
        Effects of Non-Identical Data Distribution for Federated Visual Classification.
    """

    name: OptimiserName = "fedavg"
    rate: float | None = None
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        checks = [
            ("name", self.name, self.name in _RATES, "fedavg, momentum, adam or yogi"),
            ("rate", self.rate, self.rate is None or 0 < self.rate < math.inf, "a positive number"),
            *((field, value, 0 <= value < 1, "0 or more, less than 1") for field, value in self._betas()),
            ("tau", self.tau, 0 < self.tau < math.inf, "a positive number"),
        ]
        for field, value, right, expected in checks:
            if not right:
                raise BadOptimiser(
                    where=f"optimiser, field {field}", expected=expected, got=str(value), hint="correct the setting"
                )

    def _betas(self) -> tuple[tuple[str, float], ...]:
        return ("momentum", self.momentum), ("beta1", self.beta1), ("beta2", self.beta2)

    @property
    def step_size(self) -> float:
        """The rate, or what stands for it."""
        return _RATES[self.name] if self.rate is None else self.rate

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What has to be remembered from one round of a span to its next."""
        if self.name == "fedavg" or (self.name == "momentum" and self.momentum == 0):
            return ()
        return ("m",) if self.name == "momentum" else ("m", "v")

    @property
    def is_plain(self) -> bool:
        """Whether the aggregate is the mean itself: plain FedAvg."""
        return self.name in ("fedavg", "momentum") and not self.moments and self.step_size == 1.0

    def as_training(self) -> dict[str, Any]:
        """For a manifest: name, rate, and the settings that it has."""
        own = {"momentum": ("momentum",), "adam": ("beta1", "beta2", "tau"), "yogi": ("beta1", "beta2", "tau")}
        return {"name": self.name, "rate": self.step_size} | {
            field: getattr(self, field) for field in own.get(self.name, ())
        }

    def moment(self, which: Moment, difference: Tensor, before: Tensor | None) -> Tensor:
        """A moment after this round.

        Args:
            difference: mean minus start, float64, any shape.
            before: the moment of the span's last round; None where there is none.
        Returns:
            float32, of the same shape.
        """
        if which == "m":
            keep, add = (self.momentum, 1.0) if self.name == "momentum" else (self.beta1, 1 - self.beta1)
            kept = torch.zeros_like(difference) if before is None else before.double()
            return (kept * keep + difference * add).float()
        square = difference.square()
        kept = torch.full_like(difference, self.tau**2) if before is None else before.double()
        if self.name == "adam":
            return (kept * self.beta2 + square * (1 - self.beta2)).float()
        return (kept - square * (kept - square).sign() * (1 - self.beta2)).float()

    def step(self, start: Tensor, difference: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        """Where the step leads: float64.

        Args:
            start, difference: float64, any one shape.
            moments: those after this round, as `moment` gave them.
        """
        direction = moments["m"].double() if "m" in self.moments else difference
        if "v" in self.moments:
            direction = direction / (moments["v"].double().sqrt() + self.tau)
        return start + direction * self.step_size
