"""The object `not-fed/federated/1`, as the report reads it: result.json of `not-fed demo` and `not-fed simulate`.

Everything may be missing, because a small simulation has no refusals, a bank has no aggregate, and an older file has
fewer fields; what is missing is left out of the page. What is there must have its type. Where the object may be written
shorter (a site as its name, one recipient instead of a list, `run/site` for a model) both ways are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from not_fed.errors import InputError

SCHEMA = "not-fed/federated/1"
BASE = "base"
AGGREGATE = "aggregate"
MEAN = "mean"


class BadResult(InputError):
    """The result of a federation does not have the shape it should have."""

    code = "bad-result"


class Part(BaseModel):
    """Null counts as missing; unknown fields are for other readers."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, value: Any) -> Any:  # noqa: ANN401  anything may come in; pydantic judges it afterwards
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _weakest(value: object) -> object:
    """Of each site's epsilon the largest: what holds for everybody."""
    if not isinstance(value, Mapping):
        return value
    return max((item for item in value.values() if item is not None), default=None)


def _steps(value: object) -> object:
    """A curve of losses alone gets steps, all of one round; a loss that is null was not finite."""
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or any(isinstance(item, list | tuple) for item in value)
    ):
        return value
    return [(1, step, math.nan if loss is None else loss) for step, loss in enumerate(value)]


def _by_kind(value: object) -> object:
    """`{kind: {count, bytes}}` as a list."""
    if not isinstance(value, Mapping):
        return value
    return [{"kind": kind, **stored} for kind, stored in value.items() if isinstance(stored, Mapping)]


class Score(Part):
    """A perplexity with its 95 % interval; not finite when the model diverged."""

    value: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan


class Site(Part):
    """One hospital; `records` only where its policy makes the number public."""

    name: str
    title: str = ""
    records: int | None = None


class Delivery(Part):
    """Something that went from one party to others through the server."""

    round: int = 0
    sender: str = Field(alias="from")
    to: Annotated[list[str], BeforeValidator(_several)] = []
    bytes: int = 0
    seconds: float | None = None
    kind: str = ""


class Audit(Part):
    """What an attack on the training found, by the author's word."""

    method: str = ""
    epsilon_lower_bound: float = 0.0
    confidence: float = 0.95
    delta: float | None = None
    fdp_epsilon_lower_bound: float | None = None
    noise_ratio: float | None = None
    canaries: int = 0


class Release(Part):
    """A number about the records that left beside the organ, and how."""

    name: str
    value: float = math.nan
    how: str = ""


class Account(Part):
    """Where a site's records stand with their budget after the run.

    Attributes:
        spent: by the accountant that is reported. enforced: by the filter that is the hard stop; it is larger.
        left: what one further plan may cost.
    """

    spent: float
    enforced: float | None = None
    budget: float | None = None
    left: float | None = None
    delta: float | None = None
    unit: str = "record"


class Contributor(Part):
    """A site behind a secure sum, with its own claim."""

    site: str
    epsilon: float | None = None


class PassportClaim(Part):
    """What a passport said, and who checked its signatures."""

    author: str
    round: int = 0
    organ_sha256: str = ""
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    audit: Audit | None = None
    contradicted: bool = False
    releases: list[Release] = []
    span: list[int] = []
    issued: str = ""
    verified_by: list[str] = []
    contributors: list[Contributor] = []


class Held(Part):
    """Things of one kind that the server held in a round, and what they told it."""

    round: int = 0
    what: str
    count: int = 0
    bytes: int = 0
    tells: str = ""


class Run(Part):
    """One run of the federation; `loss_curves` holds (round, step, loss) for each site."""

    name: str
    epsilon: Annotated[float | None, BeforeValidator(_weakest)] = None
    delta: float | None = None
    unit: str = "record"
    mode: str = ""
    loss_curves: dict[str, Annotated[list[tuple[int, int, float]], BeforeValidator(_steps)]] = {}
    deliveries: list[Delivery] = []
    passports: list[PassportClaim] = []
    accounts: dict[str, Account] = {}
    held: list[Held] = []


class Stored(Part):
    """Things of one kind that the server kept."""

    run: str = ""
    kind: str
    count: int = 0
    bytes: int = 0
    example: str = ""


def _total(value: object) -> object:
    return sum(value.values()) if isinstance(value, Mapping) else value


def _places(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return [f"{kind}: {place}" for kind, places in value.items() for place in _several(places)]  # type: ignore[attr-defined]


class Search(Part):
    """The search for plaintext in everything the server stored; counts may come by kind."""

    patterns_searched: Annotated[int, BeforeValidator(_total)] = Field(
        default=0, validation_alias=AliasChoices("patterns_searched", "patterns")
    )
    bytes_searched: int = 0
    found: Annotated[list[str], BeforeValidator(_places)] = []
    planted_found: bool = False
    texts: int | None = None
    tensors: int | None = None
    keys: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _all_planted_found(cls, value: Any) -> Any:  # noqa: ANN401  judged by the fields
        """`planted` and `planted_found` may list kinds: every planted kind must have been found."""
        if not isinstance(value, Mapping) or isinstance(value.get("planted_found"), bool | None):
            return value
        seen, planted = set(value["planted_found"]), set(value.get("planted", value["planted_found"]))
        return {**value, "planted_found": bool(planted) and planted <= seen}


class Refusal(Part):
    """Something that was tried and should not pass."""

    what: str
    code: str = ""
    exit_code: int | None = None

    @property
    def stopped(self) -> bool:
        """An attempt that ends with exit code 0 got through."""
        return self.exit_code != 0


class Lap(Part):
    """How long one stretch of the work took."""

    label: str
    seconds: float


class Machine(Part):
    """Where it ran."""

    cpu: str = ""
    cores: int | None = None
    torch: str = ""
    flwr: str = ""
    transformers: str = ""
    python: str = ""


class Base(Part):
    """The base model that the organs were cut from."""

    name: str = ""
    sha256: str = ""


class Federated(Part):
    """A whole federation. `command` and `sources` are optional extras: how it was started, whom to acknowledge."""

    name: str = ""
    created: str = ""
    not_fed_version: str = ""
    machine: Machine = Machine()
    federation: str = ""
    base: Base = Base()
    span: list[int] = []
    sites: list[Annotated[Site, BeforeValidator(_named)]] = []
    site_titles: dict[str, str] = {}
    rounds: int = 0
    mode: str = ""
    seconds: float | None = None
    bytes_sent: int | None = None
    runs: list[Run] = []
    perplexity: dict[str, dict[str, Score]] = {}
    server_saw: Annotated[list[Stored], BeforeValidator(_by_kind)] = []
    plaintext_check: Search | None = None
    refused: list[Refusal] = []
    timeline: list[Lap] = []
    command: str = ""
    ran_as: str = ""
    sources: list[str] = []

    @model_validator(mode="after")
    def _models_by_run(self) -> Self:
        """`run/site`, and with a single run `site` alone, become `run: site`."""
        names = {run.name for run in self.runs}
        renamed = {}
        for model, scores in self.perplexity.items():
            run, slash, organ = model.partition("/")
            if slash and run in names:
                model = f"{run}: {organ}"
            elif len(names) == 1 and model != BASE and ": " not in model:
                model = f"{next(iter(names))}: {model}"
            renamed[model] = scores
        object.__setattr__(self, "perplexity", renamed)  # still being made, so not yet frozen for anybody
        return self

    @property
    def titles(self) -> dict[str, str]:
        """What each site calls itself, where it says."""
        return self.site_titles | {site.name: site.title for site in self.sites if site.title}

    def score(self, model: str, domain: str) -> Score | None:
        """A model's perplexity on a domain, or None where it was not measured."""
        return self.perplexity.get(model, {}).get(domain)

    @property
    def specialities(self) -> list[str]:
        """Every domain that was measured but the mean, in order."""
        return [domain for domain in self.domains if domain != MEAN]

    @property
    def domains(self) -> list[str]:
        """Every domain that was measured; the mean comes last."""
        found = dict.fromkeys(domain for scores in self.perplexity.values() for domain in scores)
        return [domain for domain in found if domain != MEAN] + ([MEAN] if MEAN in found else [])

    @property
    def leading_run(self) -> Run | None:
        """The first run whose aggregate was measured."""
        return next((run for run in self.runs if aggregate_of(run) in self.perplexity), None)


def aggregate_of(run: Run) -> str:
    """The name under which a run's aggregate was measured."""
    return f"{run.name}: {AGGREGATE}"


def read_result(result: Mapping[str, Any]) -> Federated:
    """Check a result.

    Raises:
        BadResult: another schema, or a field of the wrong type; names the field.
    """
    schema = result.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise BadResult(
            where="result, field schema", expected=SCHEMA, got=str(schema)[:60], hint="made by another version"
        )
    try:
        return Federated.model_validate(dict(result))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadResult(where=f"result, field {field[:120]}", expected=first["msg"][:120], got="something else",
                        hint="make the result again") from None  # fmt: skip
