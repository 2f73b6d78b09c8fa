"""A simulated federation as a file: sites, their records, runs. Paths are relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from not_fed import settings
from not_fed.coordinator.plan import OptimiserTable, SecureSumTable
from not_fed.envelope.task import Mode, Training
from not_fed.organ.anatomy import BadSpan, Span
from not_fed.settings import Name, Settings

HPO = "hpo:"


def _span(value: object) -> object:
    """`10:13` as well as [10, 13]."""
    if isinstance(value, str):
        try:
            parsed = Span.parse(value)
        except BadSpan as error:
            raise ValueError(f"be a span such as 10:13, not {error.got}") from None
        return parsed.start, parsed.stop
    return tuple(value) if isinstance(value, list) else value


SpanText = Annotated[tuple[int, int], BeforeValidator(_span)]


class FederationTable(Settings):
    """What all runs share.

    Attributes:
        span, spans: the layers that are trained; with several spans, another one each round, in turn.
    """

    name: Name
    base: str
    span: SpanText | None = None
    spans: list[SpanText] = Field(default=[], max_length=64)
    mode: Mode = "bank"
    rounds: int = Field(default=1, ge=1, le=10_000)

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if (self.span is None) == (not self.spans):
            raise ValueError("have either span or spans")
        return self

    @property
    def in_turn(self) -> tuple[tuple[int, int], ...]:
        """The spans of the rounds, in turn."""
        return tuple(self.spans) if self.span is None else (self.span,)


class TrainingTable(Settings):
    """As `not_fed.envelope.task.Training`, with defaults."""

    lr: float = Field(default=2e-3, gt=0, le=1)
    epochs: int = Field(default=1, ge=1, le=10_000)
    batch_tokens: int = Field(default=1024, ge=1)
    max_tokens: int = Field(default=256, ge=2)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    rank: int = Field(default=0, ge=0, le=4096)
    proximal: float = Field(default=0.0, ge=0, le=1e6)

    @model_validator(mode="after")
    def _factors_or_weights(self) -> Self:
        if self.rank and self.proximal:
            raise ValueError("have no proximal beside a rank: it holds weights, not factors")
        return self

    def as_task(self) -> Training:
        """For the coordinator's plan."""
        return Training(**self.model_dump())


class PrivacyTable(Settings):
    """The constants of every site's policy, in runs that have an epsilon.

    Attributes:
        budget: what a site may ever spend on its records, over all runs; the run's epsilon when not given. One that is
            larger leaves room for steps that are repeated after a crash.
        unit, records_per_person, releases, declared_units: as in a site's policy.
    """

    budget: float | None = Field(default=None, gt=0, le=10)
    delta: float = Field(default=1e-5, gt=0, lt=0.01)
    unit: str | None = Field(default=None, min_length=1)
    records_per_person: int = Field(default=4, ge=1)
    releases: dict[str, float] = Field(default={})
    declared_units: float | None = Field(default=None, ge=1)
    sample_rate: float = Field(default=0.05, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    divisor: float = Field(gt=0)


class RunTable(Settings):
    """One run: the federation with this epsilon, or without any; what is not set here is as in the other tables."""

    name: Name
    epsilon: float | None = Field(default=None, gt=0, le=10)
    mode: Mode | None = None
    rounds: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0, le=1)
    epochs: int | None = Field(default=None, ge=1)
    proximal: float | None = Field(default=None, ge=0, le=1e6)


class SiteTable(Settings):
    """One site.

    Attributes:
        data: its records, or `hpo:SPECIALITY` for the demo's texts.
        held_out: records to evaluate on; with `hpo:` the speciality's own when not given.
        weight: its share in the mean; in mode secure-sum a whole number, hidden in the sum.
    """

    name: Name
    data: str
    held_out: str | None = None
    text_field: str = "text"
    weight: float = Field(default=1.0, gt=0)


class DataTable(Settings):
    """How many of the demo's records `hpo:` stands for."""

    records_per_site: int = Field(default=400, ge=1)
    held_out: int = Field(default=100, ge=1)


class FederationFile(Settings):
    """The whole file.

    Attributes:
        secure_sum: for runs of mode secure-sum; its defaults where there is no such table.
    """

    federation: FederationTable
    training: TrainingTable = TrainingTable()
    privacy: PrivacyTable | None = None
    optimiser: OptimiserTable | None = None
    secure_sum: SecureSumTable = SecureSumTable()
    data: DataTable = DataTable()
    runs: list[RunTable] = Field(default=[RunTable(name="run")], min_length=1)
    sites: list[SiteTable] = Field(min_length=2, max_length=250)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (("sites", [site.name for site in self.sites]), ("runs", [run.name for run in self.runs])):
            if len(set(names)) != len(names):
                raise ValueError(f"name each of its {what} once")
        if "coordinator" in {site.name for site in self.sites}:
            raise ValueError("leave the name coordinator to the coordinator")
        if self.privacy is None and any(run.epsilon is not None for run in self.runs):
            raise ValueError("have a [privacy] table with a divisor, since a run has an epsilon")
        if any(self.mode_of(run) == "secure-sum" for run in self.runs):
            self._weighs_in_whole_numbers()
        return self

    def _weighs_in_whole_numbers(self) -> None:
        most = self.secure_sum.max_weight
        if any(site.weight not in range(1, most + 1) for site in self.sites):
            raise ValueError(f"have whole weights from 1 to {most} in mode secure-sum; see secure_sum.max_weight")

    def mode_of(self, run: RunTable) -> Mode:
        """The run's mode."""
        return run.mode or self.federation.mode

    def rounds_of(self, run: RunTable) -> int:
        """The run's number of rounds."""
        return run.rounds or self.federation.rounds

    def training_of(self, run: RunTable) -> Training:
        """The run's training."""
        wanted = {"lr": run.lr, "epochs": run.epochs, "proximal": run.proximal}
        changed = {name: value for name, value in wanted.items() if value is not None}
        return self.training.model_copy(update=changed).as_task()

    def run(self, name: str | None = None) -> RunTable:
        """The run of that name; the first one without a name."""
        return next(run for run in self.runs if name in (None, run.name))


def load_federation(path: Path) -> FederationFile:
    """Read a federation file; raises BadSettings naming the field. Its paths become absolute."""
    file = settings.load(FederationFile, path)
    return settings.check(FederationFile, _absolute(file.model_dump(), path.resolve().parent), where=str(path))


def _absolute(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    if (folder / value["federation"]["base"]).is_dir():
        value["federation"]["base"] = str(folder / value["federation"]["base"])
    for site in value["sites"]:
        for field in ("data", "held_out"):
            if site[field] is not None and not site[field].startswith(HPO):
                site[field] = str(folder / site[field])
    return value
