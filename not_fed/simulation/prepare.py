"""Real homes for everybody in a simulated federation: keys under pass phrases, a pinned roster, policies, records."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.coordinator.plan import PLAN_FILE, FederationPlan, load_plan
from not_fed.errors import InputError
from not_fed.keys import PublicIdentity, Secret, Steward, create_keys
from not_fed.organ.checkpoint import Base
from not_fed.progress import Progress, silent
from not_fed.resources.bases import find_base
from not_fed.simulation.federation import HPO, FederationFile, RunTable, SiteTable
from not_fed.site.policy import POLICY_FILE, SitePolicy
from not_fed.trust.roster import create_roster, pin_roster

COORDINATOR = "coordinator"
WORK_FACTOR = 8  # the pass phrase lies beside its key in a simulation: stretching it for long protects nothing
PATIENCE_S = 24 * 3600.0


class UnknownSpeciality(InputError):
    """The demo has no texts of this name."""

    code = "speciality-unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A federation on disk, ready to run.

    Attributes:
        folder: holds `coordinator` and `sites/<name>`, each a home.
        run: the run's name inside the federation.
        spans: the layers of the rounds, in turn.
        held_out: site -> records to evaluate on, where there are any; they lie in the site's home.
    """

    folder: Path
    run: str
    mode: str
    rounds: int
    base: Base
    spans: tuple[tuple[int, int], ...]
    max_tokens: int
    text_fields: Mapping[str, str]
    held_out: Mapping[str, Path]

    @property
    def span(self) -> tuple[int, int]:
        """The layers of the first round; of every round, unless spans take turns."""
        return self.spans[0]

    def span_of(self, round_number: int) -> tuple[int, int]:
        """The layers that a round trains."""
        return self.spans[(round_number - 1) % len(self.spans)]

    @property
    def coordinator(self) -> Path:
        """The coordinator's home."""
        return self.folder / COORDINATOR

    @property
    def sites(self) -> dict[str, Path]:
        """Site -> home, in the order in which Flower's simulation engine numbers them."""
        return {path.name: path for path in sorted((self.folder / "sites").glob("*"))}


def prepare(
    federation: FederationFile,
    *,
    out: Path,
    run: RunTable | None = None,
    progress: Progress = silent,
    policy: Mapping[str, Mapping[str, Any]] | None = None,
    plan: Mapping[str, Any] | None = None,
    log: bool = True,
) -> Prepared:
    """Make the folder `out` with a home for the coordinator and one for each site; it appears whole or not at all.

    Args:
        run: which of the file's runs; the first when not given.
        policy: site -> fields of its policy that differ from what the run needs.
        plan: fields of the coordinator's plan that differ.
        log: whether the coordinator keeps a log.
    Raises:
        OutputExists: `out` is there. InputError: base or records cannot be read.
    """
    chosen = run or federation.run()
    base = find_base(federation.federation.base, progress=progress)
    data = _find_data(federation, progress)
    names = [site.name for site in federation.sites]
    with files.new_folder(out) as part:
        identities = {name: _make_home(part / "sites" / name, name) for name in names}
        identities[COORDINATOR] = _make_home(part / COORDINATOR, COORDINATOR, log=log)
        fields = {**_plan(federation, chosen, base), **(plan or {})}
        _write_settings(part / COORDINATOR / PLAN_FILE, FederationPlan, fields)
        _make_rosters(part, federation, load_plan(part / COORDINATOR), identities)
        for site in federation.sites:
            home, changes = part / "sites" / site.name, (policy or {}).get(site.name, {})
            _copy_data(home, data[site.name])
            wanted = _policy(federation, chosen, site, base)
            if fields["mode"] == "secure-sum":
                wanted |= _sum_policy(fields["secure_sum"], site, held_out=data[site.name][1])
            _write_settings(home / POLICY_FILE, SitePolicy, {**wanted, **changes})
    return Prepared(
        folder=out,
        run=fields["run"],
        mode=fields["mode"],
        rounds=fields["rounds"],
        base=base,
        spans=federation.federation.in_turn,
        max_tokens=federation.training.max_tokens,
        text_fields={site.name: site.text_field for site in federation.sites},
        held_out={
            name: out / "sites" / name / f"held_out{held_out.suffix}"
            for name, (_, held_out) in data.items()
            if held_out is not None
        },
    )


def _make_home(home: Path, name: str, *, log: bool = False) -> PublicIdentity:
    home.mkdir(mode=0o700, parents=True)
    passphrase = secrets.token_hex(32).encode()
    files.write_atomic(home / "passphrase", passphrase + b"\n")
    return create_keys(home / "keys", name=name, passphrase=Secret(passphrase), work_factor=WORK_FACTOR, log=log)


def _make_rosters(
    part: Path, federation: FederationFile, plan: FederationPlan, identities: Mapping[str, PublicIdentity]
) -> None:
    """A steward whose keys exist during this call only signs the roster; everybody pins its root."""
    summed = plan.sum_plan() if plan.mode == "secure-sum" else None
    roles = {COORDINATOR: ["relay"] if plan.mode == "bank" else ["relay", "aggregator"]}
    members: list[tuple[PublicIdentity, Iterable[str]]] = [
        (identity, roles.get(name, ["author", "receiver"])) for name, identity in identities.items()
    ]
    root = create_roster(
        part / "roster", federation=federation.federation.name, steward=Steward.generate("steward"), members=members,
        plans=[] if summed is None else [summed],
    )  # fmt: skip
    for name in identities:
        home = part / COORDINATOR if name == COORDINATOR else part / "sites" / name
        pin_roster(part / "roster", root_sha256=root, out=home / "roster")
    shutil.rmtree(part / "roster")


def _find_data(federation: FederationFile, progress: Progress) -> dict[str, tuple[Path, Path | None]]:
    """Site -> its records and its held-out records."""
    found: dict[str, tuple[Path, Path | None]] = {}
    for site in federation.sites:
        train, held_out = Path(site.data), None if site.held_out is None else Path(site.held_out)
        if site.data.startswith(HPO):
            train, held_out = _find_hpo(federation, site.data.removeprefix(HPO), progress)
        found[site.name] = (train, held_out)
    return found


def _find_hpo(federation: FederationFile, speciality: str, progress: Progress) -> tuple[Path, Path]:
    from not_fed.resources.hpo import hospital_texts

    wanted = federation.data
    texts = hospital_texts(progress, records_per_site=wanted.records_per_site, held_out=wanted.held_out)
    if speciality not in texts:
        raise UnknownSpeciality(
            where=f"data {HPO}{speciality}",
            expected=f"one of {', '.join(sorted(texts))}",
            got=speciality,
            hint="correct data",
        )
    return texts[speciality].train, texts[speciality].held_out


def _copy_data(home: Path, data: tuple[Path, Path | None]) -> None:
    for source, name in zip(data, ("records", "held_out"), strict=True):
        if source is not None:
            with files.open_regular(source) as file, files.new_file(home / f"{name}{source.suffix}") as copy:
                shutil.copyfileobj(file, copy)


def _policy(federation: FederationFile, run: RunTable, site: SiteTable, base: Base) -> dict[str, Any]:
    """A policy that allows this run and nothing beyond it."""
    training, constants = federation.training_of(run), federation.privacy
    suffix = ".jsonl" if site.data.startswith(HPO) else Path(site.data).suffix
    policy: dict[str, Any] = {
        "name": site.name,
        "federation": federation.federation.name,
        "coordinator": COORDINATOR,
        "data": f"records{suffix}",
        "text_field": site.text_field,
        "base": str(base.folder),
        "base_sha256": base.sha256,
        "spans": [list(span) for span in dict.fromkeys(federation.federation.in_turn)],
        "modes": [federation.mode_of(run)],
        "max_rounds": federation.rounds_of(run),
        "max_epochs": float(training.epochs),
        "partners": [other.name for other in federation.sites if other.name != site.name],
        "metrics_that_may_leave": [],
    }
    if run.epsilon is not None and constants is not None:
        policy["privacy"] = {
            "required": True, "max_epsilon": run.epsilon, **constants.model_dump(),
            "budget": constants.budget or run.epsilon,
        }  # fmt: skip
    return policy


def _sum_policy(summed: Mapping[str, Any], site: SiteTable, *, held_out: Path | None) -> dict[str, Any]:
    """What a site's policy says of a secure sum: its weight; and how it votes, where there is a vote.

    The held-out records of a simulation are what it prints perplexities of: their bit is public by decision. A charged
    vote needs some hundreds of them to be more than a coin (docs/voting.md).
    """
    policy: dict[str, Any] = {"sum_weight": int(site.weight)}
    if summed.get("quorum") and held_out is not None:
        policy["held_out"] = f"held_out{held_out.suffix}"
        policy["vote"] = {"allowed": "public_by_decision"}
    return policy


def _plan(federation: FederationFile, run: RunTable, base: Base) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "name": COORDINATOR,
        "federation": federation.federation.name,
        "run": run.name,
        "mode": federation.mode_of(run),
        "sites": [site.name for site in federation.sites],
        "rounds": federation.rounds_of(run),
        "base_sha256": base.sha256,
        **_spans(federation),
        "weights": {},
        "round_timeout_s": PATIENCE_S,
        "training": federation.training_of(run).model_dump(),
    }
    if plan["mode"] == "secure-sum":
        plan["secure_sum"] = federation.secure_sum.model_dump(exclude_none=True)
    else:
        plan["weights"] = {site.name: site.weight for site in federation.sites}
    if plan["mode"] != "bank":
        plan["base"] = str(base.folder)
    if federation.optimiser is not None:
        plan["optimiser"] = federation.optimiser.model_dump(exclude_none=True)
    if run.epsilon is not None and federation.privacy is not None:
        plan["privacy"] = {"epsilon": run.epsilon, "delta": federation.privacy.delta}
    return plan


def _spans(federation: FederationFile) -> dict[str, Any]:
    table = federation.federation
    return {"spans": [list(span) for span in table.spans]} if table.span is None else {"span": list(table.span)}


def _write_settings(path: Path, model: type[SitePolicy] | type[FederationPlan], fields: Mapping[str, Any]) -> None:
    """Check and write; what is written is read back by the same model, with the same result."""
    model.model_validate(dict(fields))
    files.write_atomic(path, to_toml(fields).encode())


def to_toml(fields: Mapping[str, Any]) -> str:
    """Plain values and tables as TOML; None is left out. Strings are written as JSON, which TOML reads.

    >>> print(to_toml({"a": 1, "privacy": {"unit": None, "releases": {"mean_loss": 10.0}}}))
    a = 1
    <BLANKLINE>
    [privacy]
    releases = {"mean_loss" = 10.0}
    <BLANKLINE>
    """
    plain = [
        f"{key} = {_value(value)}"
        for key, value in fields.items()
        if not isinstance(value, Mapping) and value is not None
    ]
    tables = [
        "\n".join(["", f"[{key}]", *(f"{name} = {_value(item)}" for name, item in table.items() if item is not None)])
        for key, table in fields.items()
        if isinstance(table, Mapping)
    ]
    return "\n".join([*plain, *tables]) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
