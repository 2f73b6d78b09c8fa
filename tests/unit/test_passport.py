"""The passport says what the organ's own manifest says, and is an in-toto statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.envelope import DpClaim, issue_passport, new_passport, read_passport
from not_fed.envelope.claims import AuditResult, BadClaim
from not_fed.envelope.header import MAX_METADATA_BYTES
from not_fed.envelope.passport import parse_passport
from tests.support.trust import BASE, DP, FEDERATION, NOW, Federation, organ_bytes, payload_of


def passport_of(tmp_path: Path, organ: bytes, **more: Any) -> Any:  # noqa: ANN401
    (tmp_path / "x.organ").write_bytes(organ)
    return new_passport(tmp_path / "x.organ", author="clinic", federation=FEDERATION, round_number=2, now=NOW, **more)


def test_a_passport_is_read_back_as_it_was_issued(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "roster")
    passport = passport_of(tmp_path, organ_bytes(dp=DP), metrics={"loss": 2.5, "records.rounded": 100.0})
    line = issue_passport(passport, signer=federation.clinic.signer)
    assert read_passport(line, roster=federation.roster, now=NOW) == passport
    assert passport.dp is not None
    assert (passport.dp.epsilon, passport.dp.mechanism.noise_multiplier, passport.dp.mechanism.runs) == (3.1, 1.1, 1)
    assert (passport.base_sha256, passport.span, passport.family) == (BASE, (2, 4), "llama")


def test_it_is_an_in_toto_statement(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "roster")
    passport = passport_of(tmp_path, organ_bytes())
    said = payload_of(issue_passport(passport, signer=federation.clinic.signer))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["subject"] == [{"name": "organ", "digest": {"sha256": passport.organ_sha256}}]
    assert said["predicateType"] == "urn:not-fed:passport:v1"
    assert said["predicate"]["dp"] is None


def test_two_passports_for_one_organ_differ_by_their_salt(tmp_path: Path) -> None:
    first, second = (passport_of(tmp_path, organ_bytes()) for _ in range(2))
    assert first.salt != second.salt
    assert first.model_copy(update={"salt": second.salt}) == second


@pytest.mark.parametrize("gap", ["epsilon", "delta", "unit", "accountant", "noise_multiplier", "steps"])
def test_a_manifest_that_claims_half_a_mechanism_gets_no_passport(tmp_path: Path, gap: str) -> None:
    claim = {key: value for key, value in DP.items() if key != gap}
    with pytest.raises(BadClaim):
        passport_of(tmp_path, organ_bytes(dp=claim))


def test_no_training_means_no_claim() -> None:
    assert DpClaim.from_training(None) is None
    assert DpClaim.from_training({"mode": "in-place", "dp": None}) is None
    for nonsense in ([], "epsilon 3", 3, {}):
        with pytest.raises(BadClaim):
            DpClaim.from_training({"dp": nonsense or [0]})


def test_an_audit_above_its_claim_contradicts_it() -> None:
    """Its words say so in capitals, whatever verdict its author signed; what the verdict says counts as well."""
    claim = DpClaim.from_training({"dp": DP})
    assert claim is not None
    found = {"method": "one run", "epsilon_lower_bound": 3.0, "confidence": 0.95, "canaries": 5000}
    for changes, contradicts in (
        ({}, False),
        ({"epsilon_lower_bound": 3.1}, False),
        ({"epsilon_lower_bound": 3.2}, True),
        ({"epsilon_lower_bound": 3.2, "verdict": "consistent"}, True),
        ({"verdict": "contradicts"}, True),
    ):
        audit = AuditResult.from_training({"audit": found | changes})
        assert audit is not None
        assert audit.contradicts(claim) is contradicts
        assert ("CONTRADICTS THE CLAIM" in audit.words(claim)) is contradicts


def test_a_claim_names_delta_unit_and_relation_and_is_rounded_up() -> None:
    claim = DpClaim.from_training({"dp": DP | {"epsilon": 3.1001}})
    assert str(claim) == "epsilon 3.11 at delta 1e-05 (one record added or removed)"
    person = DpClaim.from_training({"dp": DP | {"unit": "person", "records_per_person": 4}})
    assert str(person) == "epsilon 3.10 at delta 1e-05 (one person added or removed)"


def test_a_passport_takes_releases_and_ledger_head_from_the_manifest(tmp_path: Path) -> None:
    charged = {"name": "mean_loss", "noise_multiplier": 10.0}
    left = charged | {"value": 2.5, "sensitivity": 4.0, "divisor": 340.0}
    training = {"dp": DP | {"releases": [charged]}, "releases": [left], "ledger_head": "3e" * 32}
    passport = passport_of(tmp_path, organ_bytes(manifest={"training": training}), public={"records": 340.0})
    assert [(one.name, one.how) for one in passport.releases] == [("mean_loss", "noised"), ("records", "public")]
    assert passport.releases[0].sensitivity == 4.0
    assert passport.ledger_head == "3e" * 32
    for wrong in (
        {"releases": [left]},
        {**training, "releases": [left | {"noise_multiplier": 9.0}]},
        {**training, "releases": [left | {"name": "another"}]},
        {**training, "releases": ["mean_loss"]},
        {**training, "ledger_head": "newest"},
    ):
        with pytest.raises(BadClaim):
            passport_of(tmp_path, organ_bytes(manifest={"training": wrong}))


@pytest.mark.parametrize("metrics", [{"a b": 1.0}, {"x": float("nan")}, {"x": float("inf")}, {"x": 1e300}, {"": 1.0},
                                     {"\x1b[2J": 1.0}, {f"m{n}": 0.0 for n in range(65)}], ids=repr)  # fmt: skip
def test_metrics_are_few_named_finite_numbers(tmp_path: Path, metrics: dict[str, float]) -> None:
    with pytest.raises(BadClaim):
        passport_of(tmp_path, organ_bytes(), metrics=metrics)


def test_a_typical_manifest_fits_the_metadata_cap(tmp_path: Path) -> None:
    """With every fact of a large family, a privacy claim and parents from twenty sites."""
    facts = {f"a_rather_long_fact_{number}": 123_456 for number in range(20)} | {"family": "qwen3_moe"}
    organ = organ_bytes(dp=DP, manifest={"blood_type": facts, "parents": [f"{n:064x}" for n in range(20)]})
    header = canonical.loads(organ[8 : 8 + int.from_bytes(organ[:8], "little")], where="test")
    assert len(header["__metadata__"]["not-fed"]) < MAX_METADATA_BYTES
    assert len(passport_of(tmp_path, organ).parents) == 20


def test_a_passport_can_be_read_before_it_is_trusted(tmp_path: Path) -> None:
    """For telling whose it is; nothing in it counts until its author's signatures do."""
    federation = Federation.make(tmp_path / "roster")
    line = issue_passport(passport_of(tmp_path, organ_bytes()), signer=federation.clinic.signer)
    assert parse_passport(line)[1].author == "clinic"
