"""Adversary: an author who claims what is not so, and senders who pair an organ with another's claims.

Powers: a member with both of its own keys. Lacks: the author's signature over other claims.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.envelope import Expectation, ImportPolicy, issue_passport, new_passport
from not_fed.envelope.checks import BaseNotExpected, OrganRecalled, OtherSpan, WaybillMismatch
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.dsse import MalformedSigned, NewerFormat
from not_fed.envelope.open import OrganMismatch
from not_fed.envelope.passport import PAYLOAD_TYPE as PASSPORT_TYPE
from not_fed.envelope.policy import EpsilonRefused
from not_fed.errors import InputError, NotFedError, TrustError
from not_fed.organ.claims import ClaimTooSmall, recompute
from not_fed.organ.merge import ClaimsDiffer, check_claims
from not_fed.organ.organ import read_organ
from not_fed.trust.roster import recall_organ
from tests.support.attacks import assert_not_sealed, assert_opens, assert_seals, misshapen
from tests.support.trust import DP, NOW, Federation, Forger, Parcel, assert_refused, organ_bytes

MECHANISM = {"sample_rate": 0.1, "steps": 10, "noise_multiplier": 1.0, "max_grad_norm": 1.0, "divisor": 10.0}
CLAIM = {"epsilon": 1.0, "delta": 1e-5, "unit": "record", "accountant": "PLD", "mechanism": MECHANISM}
CHARGED = {"name": "mean_loss", "noise_multiplier": 10.0}
LEFT = CHARGED | {"value": 2.5, "how": "noised", "sensitivity": 4.0, "divisor": 100.0}
PERSON = CLAIM | {
    "unit": "person", "mechanism": MECHANISM | {"records_per_person": 4, "repeated_steps": 2, "releases": [CHARGED]}
}  # fmt: skip
AUDIT = {"method": "one run", "epsilon_lower_bound": 0.4, "confidence": 0.95, "canaries": 1000}


def test_a_waybill_names_its_passport(forger: Forger, parcel: Parcel) -> None:
    """A29. A true waybill beside another true passport; and a waybill that names the passport of another organ.

    Powers: collects true lines of one member, and that member's pen. Control: the passport that the waybill names.
    """
    forger.write(passport=forger.passport_with(metrics={"loss": 1.0}))
    assert_refused(parcel, WaybillMismatch)
    digest = {"subject": [{"name": "organ", "digest": {"sha256": "00" * 32}}]}
    forger.rewrite(passport=forger.sign(forger.passport | digest, PASSPORT_TYPE))
    assert_refused(parcel, WaybillMismatch)
    forger.rewrite(passport=forger.passport_with(organ_size_bytes=len(forger.organ) + 1))
    assert_refused(parcel, WaybillMismatch)
    forger.write()
    assert_opens(parcel)


def test_an_organ_has_the_passport_that_the_waybill_names(forger: Forger, parcel: Parcel) -> None:
    """A30. Two true passports of one author for one organ: the sender's waybill names one, the other is put beside it.

    Powers: a recipient who holds both passports and seals again. Control: the one that is named opens.
    """
    better = issue_passport(
        parcel.passport.model_copy(update={"metrics": {"perplexity": 1.0}}), signer=parcel.federation.clinic.signer
    )
    forger.write(passport=better)
    assert_refused(parcel, WaybillMismatch)
    again = issue_passport(parcel.passport, signer=parcel.federation.clinic.signer)  # other signatures each time
    assert again != forger.passport_line
    forger.write(passport=again)
    assert_refused(parcel, WaybillMismatch)
    forger.rewrite(passport=better)
    assert assert_opens(parcel).passport.metrics == {"perplexity": 1.0}


def test_a_passport_of_a_round_that_has_not_been_is_refused(forger: Forger, parcel: Parcel) -> None:
    """Own. The passport says that the organ was made in a later round than it is sent in.

    Powers: an author with both keys. Control: a passport of the same or an earlier round opens.
    """
    forger.rewrite(passport=forger.passport_with(round=4))  # made in a round that has not been
    assert_refused(parcel, WaybillMismatch)
    for number in (3, 2, 0):
        forger.rewrite(passport=forger.passport_with(round=number))
        assert_opens(parcel)


@pytest.mark.parametrize(
    ("expect", "kind", "exit_code"),
    [
        (Expectation(base_sha256="99" * 32), BaseNotExpected, 5),
        (Expectation(span=(2, 5)), OtherSpan, 5),
        (Expectation(family="mistral"), OtherSpan, 5),
        (Expectation(demands=ImportPolicy(max_epsilon=3.0)), EpsilonRefused, 7),
    ],
    ids=["base", "span", "family", "epsilon"],
)
def test_what_the_caller_expects_is_checked_before_anything_is_written(
    parcel: Parcel, expect: Expectation, kind: type[NotFedError], exit_code: int
) -> None:
    """A37. The passport, properly signed, claims another base, span, family or a larger epsilon than is accepted here.

    Powers: an author with both keys. Control: an organ that fits what the site expects opens.
    """
    other = parcel.folder / "dp"
    other.mkdir()
    private = Parcel(other, parcel.federation, organ=organ_bytes(dp=DP))
    assert assert_refused(private, kind, expect=expect).exit_code == exit_code
    fitting = Expectation(
        base_sha256="ab" * 32, span=(2, 4), family="llama", round_number=3, demands=ImportPolicy(max_epsilon=3.2)
    )
    opened = private.open(expect=fitting)  # control
    assert opened.passport.dp is not None
    assert opened.passport.dp.mechanism.noise_multiplier == 1.1


def test_no_claim_of_privacy_is_weaker_than_any(parcel: Parcel) -> None:
    """A37. The organ comes without any privacy claim, where the site accepts an epsilon of 8.

    Powers: an author who leaves the claim out. Control: a site that demands none lets the same organ in.
    """
    limit = Expectation(demands=ImportPolicy(max_epsilon=8.0))
    assert "no differential privacy" in assert_refused(parcel, EpsilonRefused, expect=limit).got
    assert_opens(parcel)


def test_a_passport_that_contradicts_its_organ_is_refused(forger: Forger, parcel: Parcel) -> None:
    """Own. Base, span or family in the passport are others than those in the organ file itself.

    Powers: an author with both keys. Control: a passport that agrees with its organ opens.
    """
    for lie in ({"base_sha256": "99" * 32}, {"span": [3, 5]}, {"family": "mistral"}):
        forger.rewrite(passport=forger.passport_with(**lie))
        assert_refused(parcel, OrganMismatch)
    forger.write()
    assert_opens(parcel)


def test_a_recalled_organ_is_refused_offline(own_parcel: Parcel) -> None:
    """A66. An organ that the stewards withdrew is delivered and opened, on a machine without a network.

    Powers: keeps the sealed file from before the recall. Control: before the recall it opens.
    """
    federation = own_parcel.federation
    assert assert_opens(own_parcel).passport  # control
    roster = recall_organ(
        federation.folder, organ_sha256=own_parcel.passport.organ_sha256, reason="trained on the wrong records",
        steward=federation.steward, now=NOW,
    )  # fmt: skip
    own_parcel.federation = replace(federation, roster=roster)
    assert "wrong records" in assert_refused(own_parcel, OrganRecalled).hint


def test_every_field_of_the_predicate_is_checked(forger: Forger, parcel: Parcel) -> None:
    """A34. Each field of the predicate is missing, or of every other JSON type, properly signed.

    Powers: an author with both keys. Control: an unknown field is ignored, as in-toto asks of consumers.
    """
    honest = forger.passport["predicate"]
    optional = ({"parents"}, {"signature_policy"}, {"audit"}, {"releases"}, {"ledger_head"})  # these have a default
    attempts = [attempt for attempt in misshapen(honest)[1:] if set(honest) - set(attempt) not in optional]
    for attempt in attempts:
        forger.rewrite(passport=forger.sign(forger.passport | {"predicate": attempt}, PASSPORT_TYPE))
        if attempt.get("metrics") == {"a": 1}:
            continue  # a metric like any other
        assert_refused(parcel, TrustError)
    forger.rewrite(passport=forger.passport_with(something_new={"that": "in-toto tells us to ignore"}))
    assert parcel.open().author == "clinic"  # control, and the one place where unknown fields may be


@pytest.mark.parametrize(
    "claim",
    [
        {"epsilon": -1.0}, {"epsilon": 0}, {"epsilon": True}, {"epsilon": "1"}, {"delta": 0}, {"delta": 1},
        {"unit": "site"}, {"accountant": ""}, {"extra": 1}, {"mechanism": {}}, {"epsilon": 1e13},
    ],
    ids=str,
)  # fmt: skip
def test_privacy_claims_that_mean_nothing_are_refused(forger: Forger, parcel: Parcel, claim: dict[str, object]) -> None:
    """Own. The privacy claim is signed but means nothing: epsilon of zero, delta of one, another unit, no mechanism.

    Powers: an author with both keys. Control: a claim of epsilon 1 with its mechanism is accepted.
    """
    forger.rewrite(passport=forger.passport_with(dp=CLAIM | claim))
    assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.passport_with(dp=CLAIM))
    opened = parcel.open()
    assert opened.passport.dp is not None  # control
    assert opened.passport.dp.epsilon == 1.0


@pytest.mark.parametrize(
    "mechanism",
    [
        {"sample_rate": 0}, {"sample_rate": 1.01}, {"steps": 0}, {"steps": 1.5}, {"steps": 1 << 41},
        {"noise_multiplier": 0}, {"noise_multiplier": -1.0}, {"max_grad_norm": 0}, {"max_grad_norm": 1e13},
        {"divisor": 0}, {"runs": 0}, {"adjacency": "replace_one"}, {"noise_added_at": "nowhere"}, {"seed": 1},
        {"records_per_person": 2}, {"records_per_person": 0}, {"repeated_steps": -1}, {"repeated_steps": 0.5},
        {"releases": [{"name": "mean_loss"}]}, {"releases": [{"name": "mean_loss", "noise_multiplier": 0}]},
        {"releases": [{"name": "a b", "noise_multiplier": 1}]}, {"releases": [CHARGED, CHARGED]},
        {"releases": [CHARGED | {"name": f"r{n}"} for n in range(65)]}, {"releases": {"mean_loss": 10}},
        {"repeated_releases": {"mean_loss": 1}}, {"releases": [CHARGED], "repeated_releases": {"mean_loss": 0}},
    ],
    ids=str,
)  # fmt: skip
def test_a_mechanism_that_cannot_be_is_refused(forger: Forger, parcel: Parcel, mechanism: dict[str, object]) -> None:
    """Own. The claim's mechanism is impossible: no noise, a sample rate above one, half a step, another adjacency,
    several records in a unit of one record, numbers that leave without noise, twice, or were repeated but never left.

    Powers: an author with both keys. Control: the possible mechanism beside the same epsilon is accepted.
    """
    forger.rewrite(passport=forger.passport_with(dp=CLAIM | {"mechanism": MECHANISM | mechanism}))
    assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.passport_with(dp=CLAIM))
    assert_opens(parcel)


@pytest.mark.parametrize(
    "audit",
    [
        {"epsilon_lower_bound": -0.1}, {"epsilon_lower_bound": True}, {"confidence": 0}, {"confidence": 1},
        {"confidence": "0.95"}, {"canaries": 0}, {"canaries": 1.5}, {"method": ""}, {"method": "x" * 201}, {"extra": 1},
        {"delta": 0}, {"delta": 1}, {"fdp_epsilon_lower_bound": -1}, {"expected_at_most": "low"}, {"noise_ratio": -0.1},
        {"noise_ratio": 1e13}, {"steps": 0}, {"verdict": "fine"}, {"verdict": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_audit_that_means_nothing_is_refused(forger: Forger, parcel: Parcel, audit: dict[str, object]) -> None:
    """Own. An audit's result is claimed at confidence one, with no canaries, a negative bound or an empty method.

    Powers: an author with both keys. Control: a possible result beside the claim is accepted.
    """
    forger.rewrite(passport=forger.passport_with(dp=CLAIM, audit=AUDIT | audit))
    assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.passport_with(dp=CLAIM, audit=AUDIT))
    opened = assert_opens(parcel)
    assert opened.passport.audit is not None
    assert opened.passport.audit.canaries == 1000


@pytest.mark.parametrize(
    "releases",
    [
        [{"name": "mean_loss", "value": 2.5}], [LEFT | {"how": "public"}], [LEFT | {"divisor": None}],
        [{"name": "records", "value": 100.0, "how": "noised"}], [LEFT | {"sensitivity": 0}], [LEFT, LEFT],
        [LEFT | {"value": 1e31}], [LEFT | {"value": True}], [LEFT | {"how": "secret"}], [LEFT | {"extra": 1}],
        [LEFT | {"name": "another"}], [LEFT | {"noise_multiplier": 9.999}], [LEFT | {"name": "a\n"}],
        [{"name": f"r{n}", "value": 1.0, "how": "public"} for n in range(65)], {"mean_loss": 2.5}, "mean_loss",
    ],
    ids=lambda releases: str(releases)[:60],
)  # fmt: skip
def test_numbers_that_left_say_how_and_are_in_the_claim(forger: Forger, parcel: Parcel, releases: object) -> None:
    """Own. A number leaves without saying how, half noised, twice, or with noise that the claim does not count: under
    another name, or less of it than epsilon was computed from.

    Powers: an author with both keys. Control: a noised number that the claim counts, and a public one, are accepted.
    """
    forger.rewrite(passport=forger.passport_with(dp=PERSON, releases=releases))
    assert_refused(parcel, MalformedSigned)
    public = {"name": "records", "value": 340.0, "how": "public"}
    forger.rewrite(passport=forger.passport_with(dp=PERSON, releases=[LEFT, public], ledger_head="ab" * 32))
    opened = assert_opens(parcel)
    assert [release.how for release in opened.passport.releases] == ["noised", "public"]
    assert opened.passport.ledger_head == "ab" * 32
    forger.rewrite(passport=forger.passport_with(releases=[LEFT]))  # no claim at all
    assert_refused(parcel, MalformedSigned)


@pytest.mark.parametrize("head", ["", "ab" * 31, "AB" * 32, "ab" * 33, 7, ["ab" * 32], False], ids=str)
def test_a_ledgers_head_is_a_digest(forger: Forger, parcel: Parcel, head: object) -> None:
    """Own. The ledger's head in the passport is no digest, so that nothing could ever be found missing.

    Powers: an author with both keys. Control: a passport without any is accepted, and a digest is.
    """
    forger.rewrite(passport=forger.passport_with(ledger_head=head))
    assert_refused(parcel, MalformedSigned)
    for fine in (None, "0f" * 32):
        forger.rewrite(passport=forger.passport_with(ledger_head=fine))
        assert assert_opens(parcel).passport.ledger_head == fine


def test_a_passport_edited_on_its_way_is_refused(forger: Forger, parcel: Parcel) -> None:
    """Own. Single bytes of the claim, the audit or the releases are changed after signing.

    Powers: holds the passport's line and no key. Control: the line as it was signed.
    """
    line = forger.passport_with(dp=PERSON, audit=AUDIT, releases=[LEFT], ledger_head="ab" * 32)
    payload = base64.b64decode(canonical.loads(line, where="test")["payload"])
    for old, new in ((b'"person"', b'"record"'), (b'"epsilon":1.0', b'"epsilon":0.1'),
                     (b'"canaries":1000', b'"canaries":9000'), (b'"repeated_steps":2', b'"repeated_steps":0'),
                     (b'"value":2.5', b'"value":0.5'), (b"ab" * 32, b"cd" * 32)):  # fmt: skip
        assert old in payload
        edited = canonical.loads(line, where="test") | {"payload": base64.b64encode(payload.replace(old, new)).decode()}
        forger.rewrite(passport=canonical.dumps(edited))
        assert_refused(parcel, TrustError)
    forger.rewrite(passport=line)
    assert_opens(parcel)


@pytest.mark.parametrize(
    "training",
    [
        {"dp": None}, {"dp": DP | {"epsilon": 3.2}}, {"dp": DP | {"unit": "person"}},
        {"dp": DP | {"repeated_steps": 1}}, {"audit": AUDIT},
        {"audit": AUDIT | {"verdict": "consistent"}}, {"ledger_head": "ab" * 32},
        {"dp": DP | {"releases": [CHARGED]}, "releases": [LEFT]},
    ],
    ids=lambda training: str(training)[:70],
)  # fmt: skip
def test_a_manifest_that_claims_another_privacy_is_left_out(tmp_path: Path, training: dict[str, Any]) -> None:
    """Own. Inside the organ stands another claim, audit, noised number or ledger's head than in its passport.

    Powers: an author with both keys, who hopes that a mean takes its claim from the one and readers from the other.
    Control: an organ whose manifest says what its passport says.
    """
    for name, summary in (
        ("said", {"mode": "in-place", "dp": DP}),
        ("inside", {"mode": "in-place", "dp": DP, **training}),
    ):
        (tmp_path / name).write_bytes(organ_bytes(manifest={"training": summary}))
    passport = new_passport(tmp_path / "said", author="clinic", federation="lowlands", round_number=1, now=NOW)
    check_claims(read_organ(tmp_path / "said"), passport)  # control
    with pytest.raises(ClaimsDiffer):
        check_claims(read_organ(tmp_path / "inside"), passport)


def test_a_claim_below_its_own_mechanism_is_not_relied_on(tmp_path: Path) -> None:
    """Own. The signed epsilon is smaller than the mechanism signed beside it can give; the manifest says the same.

    Powers: an author with both keys, who would not train with more noise. Control: the true number is accepted.
    """
    true = float(recompute(dp_claim(DP)).value)
    for epsilon, kept in ((true, True), (true * 0.9, False), (1e-9, False)):
        (tmp_path / "x").write_bytes(organ_bytes(dp=DP | {"epsilon": epsilon}))
        passport = new_passport(tmp_path / "x", author="clinic", federation="lowlands", round_number=1, now=NOW)
        if kept:
            check_claims(read_organ(tmp_path / "x"), passport)  # control
        else:
            with pytest.raises(ClaimTooSmall):
                check_claims(read_organ(tmp_path / "x"), passport)


def dp_claim(flat: dict[str, Any]) -> DpClaim:
    claim = DpClaim.from_training({"dp": flat})
    assert claim is not None
    return claim


@pytest.mark.parametrize(
    "metrics",
    [
        {"a": 1e31}, {"a": -1e31}, {"a": 10**18 * 10**18}, {"a": True}, {"a": "1"}, {"a": None}, {"a": [1]},
        {"": 1}, {"a b": 1}, {"\x1b[2J": 1}, {"a\n": 1}, {"a" * 65: 1}, {"ä": 1}, {"_a": 1},
        {f"m{number}": 1 for number in range(65)},
    ],
    ids=lambda metrics: f"{len(metrics)} {next(iter(metrics))[:8]!r}",
)  # fmt: skip
def test_metrics_are_bounded_numbers_under_plain_names(
    forger: Forger, parcel: Parcel, metrics: dict[str, object]
) -> None:
    """A38. Metrics are huge, no numbers, too many, or have names with control characters, spaces or none at all.

    Powers: an author with both keys. Control: 64 metrics with plain names, at the bounds, are accepted.
    """
    forger.rewrite(passport=forger.passport_with(metrics=metrics))
    assert_refused(parcel, MalformedSigned)
    fine = {f"m{number}": 1e30 for number in range(62)} | {"a.b-c_d": -1e30, "tiny": 5e-324}
    forger.rewrite(passport=forger.passport_with(metrics=fine))
    assert assert_opens(parcel).passport.metrics == fine


def test_numbers_are_not_rounded_into_acceptance(forger: Forger, parcel: Parcel) -> None:
    """Own. An epsilon a hair above the limit, or spelled so that two readers could round it apart.

    Powers: an author with both keys, who spells numbers as it likes. Control: exactly the limit is accepted.
    """
    limit = Expectation(demands=ImportPolicy(max_epsilon=3.0))
    predicate = forger.passport["predicate"] | {"dp": CLAIM | {"epsilon": 31415.5}}
    payload = canonical.dumps(forger.passport | {"predicate": predicate})
    for spelled in (b"3.0000000000000004", b"3.00000000000000023", b"30000000000000001e-16", b"3.0e+0001", b"3e0"):
        forger.rewrite(passport=forger.sign(payload.replace(b"31415.5", spelled), PASSPORT_TYPE))
        if float(spelled) > 3:
            assert_refused(parcel, EpsilonRefused, expect=limit)
        else:
            assert_opens(parcel, expect=limit)
    forger.rewrite(passport=forger.passport_with(dp=CLAIM | {"epsilon": 3.0}))
    assert_opens(parcel, expect=limit)


def test_a_passport_of_a_later_version_is_named_as_such(forger: Forger, parcel: Parcel) -> None:
    """A32, A89. The passport's predicate is of version 2, or only looks like ours.

    Powers: an honest author with a newer not-fed, or one who hopes for best effort. Control: version 1 opens.
    """
    later = forger.passport | {"predicateType": "urn:not-fed:passport:v2"}
    forger.rewrite(passport=forger.sign(later, PASSPORT_TYPE))
    assert_refused(parcel, NewerFormat)
    for kind in ("urn:not-fed:passport", "urn:not-fed:passport:V1", "https://slsa.dev/provenance/v1", ""):
        forger.rewrite(passport=forger.sign(forger.passport | {"predicateType": kind}, PASSPORT_TYPE))
        assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.sign(forger.passport | {"_type": "https://in-toto.io/Statement/v2"}, PASSPORT_TYPE))
    assert_refused(parcel, TrustError)
    forger.rewrite(passport=forger.passport_with(signature_policy="ed25519"))
    assert_refused(parcel, MalformedSigned)
    forger.write()
    assert_opens(parcel)


def test_a_passport_has_one_subject(forger: Forger, parcel: Parcel) -> None:
    """Own. The passport speaks of two organs, none, one of another name, or of a digest by another algorithm.

    Powers: an author with both keys. Control: one subject named organ with a SHA-256 is accepted.
    """
    digest = forger.passport["subject"][0]["digest"]["sha256"]
    right = {"name": "organ", "digest": {"sha256": digest}}
    for subject in (
        [], [right, right], [right, {"name": "organ", "digest": {"sha256": "00" * 32}}],
        [right | {"name": "liver"}], [{"name": "organ", "digest": {"sha1": digest[:40]}}],
        [{"name": "organ", "digest": {"sha256": digest, "sha512": digest * 2}}],
        [{"name": "organ", "digest": {"sha256": digest.upper()}}], [right | {"uri": "file:///etc/passwd"}], right,
    ):  # fmt: skip
        forger.rewrite(passport=forger.sign(forger.passport | {"subject": subject}, PASSPORT_TYPE))
        assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.sign(forger.passport | {"subject": [right]}, PASSPORT_TYPE))
    assert_opens(parcel)


def test_spans_that_are_none_are_refused(forger: Forger, parcel: Parcel) -> None:
    """Own. The span is empty, runs backwards, is negative, has one or three ends, or lies beyond any model.

    Powers: an author with both keys. Control: the organ's own span is accepted.
    """
    for span in ([2, 2], [4, 2], [-1, 4], [2], [2, 4, 6], [2, 65536], [0.0, 4], ["2", "4"], [2, 1 << 64]):
        forger.rewrite(passport=forger.passport_with(span=span))
        assert_refused(parcel, MalformedSigned)
    forger.rewrite(passport=forger.passport_with(span=[2, 4]))
    assert_opens(parcel)


def test_nobody_issues_a_passport_for_another(parcel: Parcel) -> None:
    """Own. A member signs a passport that names another member as its author.

    Powers: a member with both of its own keys and the library. Control: the author itself may.
    """
    with pytest.raises(InputError):
        issue_passport(parcel.passport, signer=parcel.federation.lab.signer)
    assert issue_passport(parcel.passport, signer=parcel.federation.clinic.signer)


def test_a_passport_for_another_organ_is_not_sealed(tmp_path: Path, federation: Federation) -> None:
    """Own. A careless or bribed sender seals one organ under the passport of another, of the same size and span.

    Powers: holds both organs and both passports. Control: the organ under its own passport is sealed.
    """
    parcels = []
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(value=value)))
    assert len(parcels[0].organ) == len(parcels[1].organ)
    assert assert_not_sealed(parcels[0], TrustError, passport=parcels[1].passport_line).code == "organ-changed"
    assert_seals(parcels[0])
