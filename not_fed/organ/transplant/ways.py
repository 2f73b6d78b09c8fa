"""The ways of putting an organ into a model, each with its own settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from not_fed.errors import InputError
from not_fed.organ.checkpoint import Base

Overlap = Literal["mean", "ties"]
Start = Literal["zero", "organ"]


class BadScale(InputError):
    """The scale of a change is a finite number."""

    code = "bad-scale"


@dataclass(frozen=True, slots=True)
class Replace:
    """The organ's layers instead of the model's."""

    mode: ClassVar[str] = "replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What training changed in the organ, added to the layers of a model that went its own way from the same base.

    Attributes:
        origin: the base that the organs were cut from.
        scale: how much of the change is added; a negative one takes it away (task negation).
        overlap: what happens in a layer that several organs change; None refuses that.
    Source: Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv 2212.04089.
    """

    mode: ClassVar[str] = "delta"
    origin: Base
    scale: float = 1.0
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise BadScale(where="scale", expected="a finite number", got=str(self.scale), hint="1 adds all of it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """The organ's layers between the model's, which has more layers afterwards.

    Attributes:
        start: "zero" sets to zero what the new layers write to the residual stream, so that at first they change
            nothing and can be trained from there; "organ" leaves the weights as they are.
    Source: Wu et al. 2024, LLaMA Pro: Progressive LLaMA with Block Expansion, arXiv 2401.02415.
    """

    mode: ClassVar[str] = "insert"
    start: Start = "zero"


Way = Replace | Delta | Insert
REPLACE = Replace()
