"""What the coordinator proposes: its own file, `federation.toml` in its home."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from not_fed import canonical, settings
from not_fed.envelope.task import ProposedPrivacy, Training
from not_fed.settings import Name, Pair, Settings, Sha256

PLAN_FILE = "federation.toml"
PATIENCE = ("round_timeout_s", "join_timeout_s", "retry_s", "retry_after_s", "max_attempts")


class FederationPlan(Settings):
    """One run of a federation.

    Attributes:
        name: the coordinator's own name in the roster.
        run: names this run; a site answers each round of a run once.
        sites: who is invited, by their names in the roster.
        base: in mode trusted, the base model's folder (or a name that not-fed knows): organs are checked against it.
        weights: share of each site in the mean, declared and public; a site that is not listed counts 1.
        min_answers: a round with fewer organs than this is closed as such and opened again later.
        round_timeout_s: how long a round waits for its last answer.
        join_timeout_s: how long a round waits for a site that is not connected, once enough others have answered; and
            how long the run waits at its start for as many sites as it needs.
        retry_s: pause before a site that refused for now, or lost its message, is sent its task again.
        retry_after_s: pause before a round that had too few answers is opened again.
        max_attempts: how often a round is opened before the run stops; starting again goes on.
        max_parcel_bytes: larger answers are refused unread.
    """

    name: Name
    federation: Name
    run: Name
    mode: Literal["bank", "trusted"]
    sites: list[Name] = Field(min_length=2, max_length=250)
    rounds: int = Field(ge=1, le=10_000)
    base_sha256: Sha256
    base: str | None = None
    span: Pair
    weights: dict[Name, float] = Field(default={})
    min_answers: int = Field(default=2, ge=1)
    round_timeout_s: float = Field(default=3600.0, gt=0)
    join_timeout_s: float = Field(default=300.0, gt=0)
    retry_s: float = Field(default=30.0, gt=0)
    retry_after_s: float = Field(default=300.0, gt=0)
    max_attempts: int = Field(default=3, ge=1, le=1000)
    max_parcel_bytes: int = Field(default=8 << 30, ge=1)
    training: Training
    privacy: ProposedPrivacy | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("each site once in sites")
        if not 0 <= self.span[0] < self.span[1]:
            raise ValueError("span as [start, stop] with 0 <= start < stop")
        if not set(self.weights) <= set(self.sites) or any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("a positive weight for sites of this run only")
        if self.mode == "trusted" and self.base is None:
            raise ValueError("base in mode trusted, to check organs against before they are averaged")
        if self.min_answers > len(self.sites):
            raise ValueError("min_answers of at most the number of sites")
        return self

    def recipients(self) -> list[str]:
        """To whom a site seals its organ: each other site, or the aggregator alone."""
        return sorted(self.sites) if self.mode == "bank" else [self.name]

    def sha256(self) -> str:
        """Digest of what a run must keep to from its beginning: all but how long it waits and how often it tries."""
        return hashlib.sha256(canonical.dumps(self.model_dump(mode="json", exclude=set(PATIENCE)))).hexdigest()


def load_plan(home: Path) -> FederationPlan:
    """Read the plan of the coordinator at `home`; raises BadSettings naming file and field."""
    return settings.load(FederationPlan, home / PLAN_FILE)
