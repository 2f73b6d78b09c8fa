"""What the utility benchmark compares, and how much of it: samples, steps, epsilons, where each sweep begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from not_fed.bench.dp_trainee import MethodName, Precision
from not_fed.organ.anatomy import Span

SPAN = Span(26, 29)
NAMES: dict[MethodName, str] = {"organ": "organ", "lora": "LoRA, all linear layers (PEFT)", "full": "full fine-tuning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates that a sweep begins with, two or more; it goes on past an end that is best."""

    private: tuple[float, ...]
    plain: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to sample, and what is compared under it.

    Attributes:
        epsilons: None is a run without clip and noise.
        anchor: the epsilon that the private runs' learning rate is chosen at.
        methods: which are compared, with the learning rates that their sweeps begin with.
    """

    name: str
    sample_rate: float
    steps: int
    epsilons: tuple[float | None, ...]
    anchor: float
    methods: dict[MethodName, Rates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it."""

    records: int
    held_out: int
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    rank: int = 8
    precision: Precision = "bfloat16"
    most_rates: int = 4


LARGE = Setting(
    name="large samples",
    sample_rate=0.2,
    steps=10,
    epsilons=(8.0, 3.0, 1.0),
    anchor=3.0,
    methods={"organ": Rates(private=(8e-3, 1.6e-2), plain=())},
)
SIDE_BY_SIDE = Setting(
    name="side by side",
    sample_rate=0.04,
    steps=4,
    epsilons=(None, 8.0, 3.0, 1.0),
    anchor=3.0,
    methods={
        "organ": Rates(private=(1.6e-2, 3.2e-2), plain=(2e-3, 4e-3)),
        "lora": Rates(private=(1e-2, 2e-2), plain=(5e-3, 1e-2)),
        "full": Rates(private=(1e-3, 2e-3), plain=(5e-4, 1e-3)),
    },
)
FULL = Size(records=1500, held_out=200, seeds=(0, 1, 2), settings=(SIDE_BY_SIDE, LARGE))
QUICK = Size(
    records=120,
    held_out=30,
    seeds=(0,),
    settings=(replace(SIDE_BY_SIDE, sample_rate=0.1, steps=3, epsilons=(None, 3.0)),),
    most_rates=2,
)
