"""Adversary: everybody who sees what a private site sends, its peers included, and who knows its policy.

Powers: reads answers, passports and manifests, and compares two sites. Lacks: the sites' disks.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from not_fed import settings
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import Passport, parse_passport
from not_fed.organ.organ import read_organ
from not_fed.simulation import Prepared, SimulationResult, run
from not_fed.simulation.prepare import to_toml
from not_fed.site.policy import SitePolicy
from not_fed.site.state import SiteState
from tests.support.federation import PRIVACY, SITES, a_task, ask, refusal, signed, tiny_prepared

CONSTANTS = {"steps": 4.0}


def passport_of(prepared: Prepared, site: str) -> Passport:
    organ = prepared.sites[site] / "organs" / prepared.run / "own-1.organ"
    return parse_passport(passport_path(organ).read_bytes().strip())[1]


def train(prepared: Prepared, site: str, *, private: bool = True) -> RecordDict:
    task = a_task(prepared, **({"privacy": PRIVACY} if private else {}))
    return ask(prepared, site, signed(prepared, task))


def change(prepared: Prepared, site: str, *, privacy: dict[str, Any] | None = None, **changes: object) -> None:
    path = prepared.sites[site] / "site.toml"
    policy = settings.load(SitePolicy, path).model_dump(mode="json")
    path.write_text(to_toml({**policy, **changes, "privacy": {**policy["privacy"], **(privacy or {})}}))


def shorten(prepared: Prepared, site: str, *, keep: int) -> None:
    path = prepared.sites[site] / "records.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:keep]) + "\n")


def left(passport: Passport) -> dict[str, float]:
    return {release.name: release.value for release in passport.releases}


def test_what_two_sites_send_does_not_tell_their_record_counts(tmp_path: Path) -> None:
    """Own. A peer compares all that two sites of unlike size sent: answers, passports, manifests.

    Powers: opened both organs. Control: what differs is the organ itself, the noise's own findings and random numbers.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    shorten(prepared, "ward", keep=5)
    answers = [train(prepared, site) for site in ("clinic", "ward")]
    shapes = [{name: sorted(record) for name, record in answer.items()} for answer in answers]
    assert shapes[0] == shapes[1] == {"answer": ["label", "left-out", "receipt", "received"], "parcels": ["0"]}
    told = [dict(answer["answer"]) for answer in answers if isinstance(answer["answer"], ConfigRecord)]
    assert [(one["received"], one["left-out"]) for one in told] == [(0, []), (0, [])]
    own = {"author", "created", "salt", "organ_sha256", "organ_size_bytes", "audit", "ledger_head"}
    clinic, ward = (passport_of(prepared, site).model_dump(mode="json", exclude=own) for site in ("clinic", "ward"))
    assert clinic == ward
    summaries = []
    for site in ("clinic", "ward"):
        manifest = read_organ(prepared.sites[site] / "organs" / prepared.run / "own-1.organ").manifest
        summaries.append({k: v for k, v in (manifest.training or {}).items() if k not in ("audit", "ledger_head")})
    assert summaries[0] == summaries[1]
    assert set(summaries[0]) == {"mode", "lr", "precision", "engine", "steps", "dp", "releases"}


@pytest.mark.parametrize(
    ("named", "decided", "leaves"),
    [
        ([], [], set()),
        (["steps"], [], {"steps"}),
        (["steps", "records", "loss_last", "tokens"], [], {"steps"}),
        ([], ["records"], {"records"}),
        (["loss_first"], ["records", "people"], {"records"}),
    ],
    ids=str,
)
def test_only_numbers_that_the_officer_named_leave_exact(
    tmp_path: Path, named: list[str], decided: list[str], leaves: set[str]
) -> None:
    """Own. A peer looks for numbers about a private site's records in its passport.

    Powers: opened the organ; the site's policy, which requires no privacy, names losses and counts for other runs.
    Control: what the officer decided to make public, in those words, is there, and is called public.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    changed = {"required": False, "public_by_decision": decided}
    change(prepared, "clinic", privacy=changed, metrics_that_may_leave=named)
    assert refusal(train(prepared, "clinic")) is None
    passport = passport_of(prepared, "clinic")
    assert set(left(passport)) == leaves
    assert all(release.how == "public" for release in passport.releases)
    assert dict(passport.metrics) == {}
    assert left(passport).get("records", 16.0) == 16.0


def test_without_privacy_the_named_numbers_leave_and_are_called_public(tmp_path: Path) -> None:
    """Own. A peer takes an exact number for one that is covered by a guarantee.

    Powers: reads the passport. Control: of a run without privacy the named numbers leave, each called public.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    change(prepared, "clinic", privacy={"required": False}, metrics_that_may_leave=["loss_last", "records"])
    assert refusal(train(prepared, "clinic", private=False)) is None
    passport = passport_of(prepared, "clinic")
    assert {release.name: release.how for release in passport.releases} == {"loss_last": "public", "records": "public"}
    assert passport.dp is None


def test_a_released_loss_carries_its_noise_and_is_charged(tmp_path: Path) -> None:
    """Own. A peer looks for the exact loss or number of units behind what a private site lets out.

    Powers: opened the organ. Control: the noise's constants are beside the number, and epsilon covers it: the same
    run without releases needs less noise in its steps.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    asked = {"releases": {"mean_loss": 10.0, "units": 5.0}, "declared_units": 20.0}
    change(prepared, "clinic", privacy=asked)
    for site in ("clinic", "ward"):
        assert refusal(train(prepared, site)) is None
    passport, plain = passport_of(prepared, "clinic"), passport_of(prepared, "ward")
    loss, units = (next(one for one in passport.releases if one.name == name) for name in ("mean_loss", "units"))
    assert (loss.how, loss.noise_multiplier, loss.sensitivity, loss.divisor) == ("noised", 10.0, 4.0, 20.0)
    assert (units.how, units.noise_multiplier, units.sensitivity, units.divisor) == ("noised", 5.0, 1.0, 1.0)
    assert units.value != round(units.value)
    assert passport.dp is not None
    assert plain.dp is not None
    assert {one.name for one in passport.dp.mechanism.releases} == {"mean_loss", "units"}
    assert passport.dp.epsilon <= 8.0
    assert passport.dp.mechanism.noise_multiplier > plain.dp.mechanism.noise_multiplier


def test_a_site_keeps_nothing_about_its_batches(tmp_path: Path) -> None:
    """Own. Whoever sees the site's notes and resume files later looks for losses, sizes or indices of single steps.

    Powers: reads the site's state after the run. Control: a run without privacy keeps its losses, for the site's eyes.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    change(prepared, "ward", privacy={"required": False})
    assert refusal(train(prepared, "clinic")) is None
    assert refusal(train(prepared, "ward", private=False)) is None
    (private,), (plain,) = (SiteState(prepared.sites[site]).results(prepared.run) for site in ("clinic", "ward"))
    assert not [name for name in private if "loss" in name or "batch" in name or "record" in name or "token" in name]
    assert not [value for value in private.values() if isinstance(value, float) and math.isnan(value)]
    assert plain["loss_curve"]  # control
    assert not list((prepared.sites["clinic"] / "organs").rglob("*.resume*"))
    log = prepared.sites["clinic"] / "log"
    assert not log.exists() or "loss" not in log.read_text()


def name_people(prepared: Prepared, site: str, *, each: int) -> None:
    path = prepared.sites[site] / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps({**row, "patient_id": f"p{number // each}"}) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def test_records_that_name_people_are_protected_by_person(tmp_path: Path) -> None:
    """Own. A promise for single records is sold as one for patients, each of whom has several records.

    Powers: a careless officer, whose policy says nothing, or says record. Control: the claim is for people, names how
    many of their records join a step, and tells neither how many people nor how many records there are.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=1)
    for site in ("clinic", "ward"):
        name_people(prepared, site, each=4)
    change(prepared, "ward", privacy={"unit": "record"})
    assert refusal(train(prepared, "clinic")) is None
    claim = passport_of(prepared, "clinic").dp
    assert claim is not None
    assert (claim.unit, claim.mechanism.records_per_person) == ("person", 4)
    assert "(one person added or removed)" in str(claim)
    assert refusal(train(prepared, "ward")) == "unit-understates"
    assert "person" not in json.dumps(SiteState(prepared.sites["ward"]).results(prepared.run))


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """A run of sites that hold 16, 5 and 16 records."""
    prepared = tiny_prepared(tmp_path_factory.mktemp("unlike"), rounds=1)
    shorten(prepared, "hospice", keep=5)
    return run(prepared)


def test_no_record_count_reaches_the_weights_of_the_mean(unlike: SimulationResult) -> None:
    """Own. The coordinator wants the sites' sizes, which federated averaging usually sends as weights.

    Powers: reads every answer, and its own state. Control: the mean is there, and each site counts alike in it,
    whatever it holds; a weight is what the coordinator's own plan declares.
    """
    assert unlike.aggregate is not None
    training = read_organ(unlike.aggregate).manifest.training or {}
    assert len(training["weights"]) == len(SITES)
    assert set(training["weights"].values()) == {1.0}
    for one in unlike.answers:
        assert set(one) == {"round", "kind", "site", "status", "code"}


def test_a_task_of_unlike_weights_changes_no_site(tmp_path: Path) -> None:
    """Own. The coordinator declares unlike weights, to see whether a site corrects them by what it holds.

    Powers: writes the plan. Control: the mean has the plan's weights, to the letter.
    """
    weights = {"clinic": 3.0, "hospice": 1.0, "ward": 0.5}
    prepared = tiny_prepared(tmp_path, weights=weights, rounds=1)
    shorten(prepared, "clinic", keep=5)
    result = run(prepared)
    assert result.aggregate is not None
    training = read_organ(result.aggregate).manifest.training or {}
    assert sorted(training["weights"].values()) == [0.5, 1.0, 3.0]
    assert json.dumps(training["dp"]) == "null"
