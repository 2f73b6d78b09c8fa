"""Adversary: a member in good standing whose organ is not what this house lets in; and an officer's typing errors.

Powers: signs whatever claim it likes, with its own keys. Always: refused before one byte is written, with the code of
the demand that is not met; a demand that cannot be checked counts as not met.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from not_fed.envelope import Expectation, load_import_policy, verify_sealed
from not_fed.envelope.policy import (
    AuditContradicts,
    AuditMissing,
    AuthorNotAccepted,
    BaseRefused,
    CannotTell,
    DeltaRefused,
    EpsilonRefused,
    FamilyRefused,
    ImportPolicy,
    LogProofMissing,
    ReleaseRefused,
    SenderNotAccepted,
    SpanRefused,
    TooManyPerPerson,
    TooOld,
    UnitRefused,
)
from not_fed.errors import NotFedError
from not_fed.settings import BadSettings
from tests.support.attacks import assert_opens
from tests.support.trust import BASE, DP, NOW, Federation, Forger, Parcel, assert_refused, organ_bytes

AUDIT = {"method": "one-run audit", "epsilon_lower_bound": 0.7, "confidence": 0.95, "canaries": 1000}


@pytest.fixture
def private(tmp_path: Path, federation: Federation) -> Parcel:
    """The clinic's organ with epsilon 3.1 per record, delta 1e-5, and an audit beside it."""
    training = {"mode": "in-place", "dp": DP, "audit": AUDIT}
    return Parcel(tmp_path, federation, organ=organ_bytes(manifest={"training": training}))


MET: dict[str, Any] = {
    "authors": ["clinic", "lab"], "senders": ["clinic"], "max_epsilon": 3.1, "max_delta": 1e-5, "units": ["record"],
    "audit": "required", "releases": "noised", "bases": [BASE], "families": ["llama"], "spans": [(2, 4)],
    "max_age_days": 7,
}  # fmt: skip
UNMET: list[tuple[str, Any, type[NotFedError], int]] = [
    ("authors", ["lab"], AuthorNotAccepted, 6),
    ("authors", [], AuthorNotAccepted, 6),
    ("senders", ["hub"], SenderNotAccepted, 6),
    ("log_proof", "required", LogProofMissing, 6),
    ("max_epsilon", 3.0999, EpsilonRefused, 7),
    ("max_delta", 9e-6, DeltaRefused, 7),
    ("units", ["person"], UnitRefused, 7),
    ("bases", ["99" * 32], BaseRefused, 7),
    ("families", ["mistral"], FamilyRefused, 7),
    ("spans", [(2, 5), (0, 2)], SpanRefused, 7),
]


@pytest.mark.parametrize(("field", "value", "kind", "exit_code"), UNMET, ids=[f"{row[0]}={row[1]}" for row in UNMET])
def test_a_demand_that_is_not_met_refuses(
    private: Parcel, field: str, value: object, kind: type[NotFedError], exit_code: int
) -> None:
    """A37. An organ that breaks one demand of many. Powers: signs any claim. Control: all the other demands are met."""
    demands = ImportPolicy(**{**MET, field: value})
    refused = assert_refused(private, kind, expect=Expectation(demands=demands))
    assert refused.exit_code == exit_code
    assert field in refused.where
    opened = private.open(expect=Expectation(demands=ImportPolicy(**MET)))
    assert {demand.field for demand in opened.demands} == set(MET)


def test_an_organ_without_a_claim_meets_no_demand_for_privacy(parcel: Parcel) -> None:
    """Own. No differential privacy where some is demanded. Powers: leaves the claim out. Control: no such demand."""
    for field, kind in (("max_epsilon", EpsilonRefused), ("max_delta", DeltaRefused), ("units", UnitRefused)):
        value: object = ["record", "person"] if field == "units" else 1e6
        demands = ImportPolicy(**{field: value})
        assert "no differential privacy" in assert_refused(parcel, kind, expect=Expectation(demands=demands)).got
    assert parcel.open(expect=Expectation(demands=ImportPolicy(authors=["clinic"]))).author == "clinic"


def test_an_organ_without_an_audit_is_refused_where_one_is_demanded(parcel: Parcel) -> None:
    """Own. A claim with nothing measured beside it. Powers: leaves the audit out. Control: optional means optional."""
    required = Expectation(demands=ImportPolicy(audit="required", authors=["clinic"]))
    assert_refused(parcel, AuditMissing, expect=required)
    assert parcel.open(expect=Expectation(demands=ImportPolicy(audit="optional", authors=["clinic"])))


@pytest.mark.parametrize(
    "audit",
    [
        {"verdict": "contradicts"}, {"epsilon_lower_bound": 3.1001},
        {"epsilon_lower_bound": 9.0, "verdict": "consistent"},
    ],
    ids=str,
)  # fmt: skip
def test_an_audit_that_contradicts_its_claim_is_none(private: Parcel, audit: dict[str, Any]) -> None:
    """Own. The attack on the training found more than the claim allows, and its author signs both, as consistent even.

    Powers: an author with both keys, who hopes that nobody compares. Control: a bound at the claim meets the demand,
    and where no audit is demanded the organ opens, with the contradiction to be seen.
    """
    forger, required = Forger(private), Expectation(demands=ImportPolicy(audit="required"))
    forger.rewrite(passport=forger.passport_with(audit=AUDIT | audit))
    assert_refused(private, AuditContradicts, expect=required)
    forger.rewrite(passport=forger.passport_with(audit=AUDIT | audit))
    seen = assert_opens(private).passport
    assert seen.audit is not None
    assert "CONTRADICTS" in seen.audit.words(seen.dp)
    forger.rewrite(passport=forger.passport_with(audit=AUDIT | {"epsilon_lower_bound": 3.1, "verdict": "consistent"}))
    assert_opens(private, expect=required)  # control


def test_more_records_of_a_person_than_demanded_are_refused(private: Parcel) -> None:
    """Own. The claim protects people, but many records of one may join a step; or it protects records alone.

    Powers: an author with both keys. Control: as many records as the demand allows.
    """
    forger = Forger(private)
    claim = forger.passport["predicate"]["dp"]

    def for_people(most: int) -> dict[str, Any]:
        return {**claim, "unit": "person", "mechanism": {**claim["mechanism"], "records_per_person": most}}

    demands = Expectation(demands=ImportPolicy(max_records_per_person=4))
    for wrong in (for_people(5), claim, None):
        forger.rewrite(passport=forger.passport_with(dp=wrong, audit=None))
        assert_refused(private, TooManyPerPerson, expect=demands)
    forger.rewrite(passport=forger.passport_with(dp=for_people(4), audit=None))
    assert_opens(private, expect=demands)  # control


def test_exact_numbers_about_records_are_refused_where_noise_is_demanded(private: Parcel) -> None:
    """Own. An author publishes its exact record count beside the organ, where the organisation takes none such.

    Powers: an author with both keys. Control: a noised number that the claim counts, and no number at all.
    """
    forger, demands = Forger(private), Expectation(demands=ImportPolicy(releases="noised"))
    public = {"name": "records", "value": 340.0, "how": "public"}
    forger.rewrite(passport=forger.passport_with(releases=[public]))
    assert_refused(private, ReleaseRefused, expect=demands)
    claim = forger.passport["predicate"]["dp"]
    charged = {"name": "mean_loss", "noise_multiplier": 10.0}
    left = charged | {"value": 2.5, "how": "noised", "sensitivity": 4.0, "divisor": 100.0}
    counted = {**claim, "mechanism": {**claim["mechanism"], "releases": [charged]}}
    forger.rewrite(passport=forger.passport_with(dp=counted, releases=[left]))
    assert_opens(private, expect=demands)  # control


def test_an_audit_that_means_nothing_is_refused(private: Parcel) -> None:
    """Own. An audit of no canaries, or sure beyond certainty. Powers: signs it. Control: the honest audit opens."""
    forger = Forger(private)
    for lie in ({"canaries": 0}, {"confidence": 1.0}, {"confidence": 0}, {"epsilon_lower_bound": -1}, {"method": ""},
                {"more": 1}, {"epsilon_lower_bound": "0.7"}):  # fmt: skip
        forger.rewrite(passport=forger.passport_with(audit=AUDIT | lie))
        assert_refused(private, NotFedError)
    forger.rewrite(passport=forger.passport_with(audit=AUDIT))
    assert private.open().passport.audit


@pytest.mark.parametrize("days", [7.01, 400.0])
def test_an_old_passport_under_a_fresh_waybill_is_refused(parcel: Parcel, days: float) -> None:
    """Own. Old work sent again today. Powers: a new waybill by the author. Control: work that is young enough."""
    forger = Forger(parcel)
    made = NOW - timedelta(days=days)
    forger.rewrite(passport=forger.passport_with(created=made.strftime("%Y-%m-%dT%H:%M:%SZ")))
    members = {name: replace(m, not_before=made) for name, m in parcel.federation.roster.members.items()}
    older = replace(parcel.federation, roster=replace(parcel.federation.roster, members=members))
    parcel.federation = older
    assert_refused(parcel, TooOld, expect=Expectation(demands=ImportPolicy(max_age_days=7)))
    assert parcel.open(expect=Expectation(demands=ImportPolicy(max_age_days=401)))


def test_a_passport_from_the_future_is_not_young(parcel: Parcel) -> None:
    """Own. A date ahead of now, so that it never grows old. Powers: signs any date. Control: today's date."""
    forger = Forger(parcel)
    forger.rewrite(passport=forger.passport_with(created="2027-11-24T12:00:00Z"))
    assert_refused(parcel, NotFedError, expect=Expectation(demands=ImportPolicy(max_age_days=7)))
    forger.rewrite(passport=forger.passport_with(created="2026-11-24T12:00:00Z"))
    assert parcel.open(expect=Expectation(demands=ImportPolicy(max_age_days=7)))


def test_a_policy_is_never_met_by_a_label_alone(parcel: Parcel) -> None:
    """Own. Without a key, demands about the inside cannot be checked. Powers: a fine label. Control: with the key."""
    federation, demands = parcel.federation, ImportPolicy(authors=["clinic"])
    common: dict[str, Any] = {
        "roster": federation.roster, "now": NOW, "label": parcel.sealed.label, "expect": Expectation(demands=demands),
    }  # fmt: skip
    with pytest.raises(CannotTell):
        verify_sealed(parcel.path, **common)
    assert verify_sealed(parcel.path, opener=federation.hub.opener, **common).demands


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing\n", 'audit = "optional"\n', "max_epsilom = 8\n", 'max_epsilon = "8"\n', "max_epsilon = nan\n",
        "max_epsilon = inf\n", "max_epsilon = -1\n", "max_epsilon = true\n", 'authors = "clinic"\n',
        'units = ["site"]\n', 'bases = ["AB"]\n', "spans = [[2, 4, 6]]\n", 'log_proof = "yes"\n', "max_age_days = 0\n",
        "[x]\n", "\x00",
    ],
)  # fmt: skip
def test_a_policy_that_demands_nothing_or_is_misspelt_is_an_error(tmp_path: Path, text: str) -> None:
    """Own. A typing error that would let everything in. Powers: none, an accident. Control: a policy that demands."""
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(BadSettings):
        load_import_policy(path)
    path.write_text("max_epsilon = 8\n")
    assert load_import_policy(path).max_epsilon == 8.0


def test_a_policy_is_a_plain_file(tmp_path: Path) -> None:
    """Own. A link or a pipe where the policy should be. Powers: writes into that folder. Control: the file itself."""
    (tmp_path / "real.toml").write_text("max_epsilon = 8\n")
    (tmp_path / "policy.toml").symlink_to(tmp_path / "real.toml")
    with pytest.raises(NotFedError):
        load_import_policy(tmp_path / "policy.toml")
    assert load_import_policy(tmp_path / "real.toml").max_epsilon == 8.0
