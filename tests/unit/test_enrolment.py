"""Enrolment, invitation, and what a coordinator takes in."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed import canonical
from not_fed.coordinator.nodes import EnrolmentDiffers, Nodes, WrongFederation
from not_fed.envelope.enrolment import (
    EnrolmentRefused,
    enrolment_fingerprint,
    verify_enrolment,
)
from not_fed.envelope.invitation import (
    BadAddress,
    BadInvitation,
    Invitation,
    invitation_fingerprint,
    read_invitation,
    split_address,
    write_invitation,
)
from not_fed.errors import NotFedError
from not_fed.keys import Steward
from not_fed.trust.roster import create_roster, load_roster, revoke_member
from tests.support.enrolments import Joining
from tests.support.trust import FEDERATION, NOW

INVITATION = Invitation(
    v=1, federation=FEDERATION, coordinator="hub", address="hub.example.org:8443", ca_certificate=None,
    bundle_sha256="ab" * 32, base="smollm2-135m", base_sha256="cd" * 32, spans=((26, 29),), mode="bank", rounds=2,
    privacy=None, not_fed="0.1.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Joining:
    return Joining.make("clinic", folder=tmp_path_factory.mktemp("clinic"))


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Joining:
    return Joining.make("ward", folder=tmp_path_factory.mktemp("ward"))


def enrol(nodes: Nodes, line: bytes, *, replace: bool = False) -> str:
    return nodes.enrol(line, federation=FEDERATION, coordinator="hub", now=NOW, replace=replace).enrolment.site


def test_an_enrolment_says_who_it_is_and_with_which_key_it_connects(clinic: Joining) -> None:
    enrolment, identity = verify_enrolment(clinic.enrolment(), where="x")
    assert (enrolment.site, enrolment.federation) == ("clinic", FEDERATION)
    assert identity.signing == clinic.site.signer.public
    assert enrolment.node_key == " ".join(clinic.node_key.split()[:2])


def test_the_fingerprint_stays_when_only_the_time_differs_and_changes_with_every_key(
    clinic: Joining, ward: Joining, tmp_path: Path
) -> None:
    first = enrolment_fingerprint(clinic.enrolment())
    assert first == enrolment_fingerprint(clinic.enrolment(now=NOW + timedelta(days=1)))
    assert len(first.split()) == 13
    others = {
        enrolment_fingerprint(line)
        for line in (
            clinic.enrolment(node_key=ward.node_key), clinic.enrolment(federation="highlands"), ward.enrolment(),
            Joining.make("clinic", folder=tmp_path).enrolment(node_key=clinic.node_key),
        )
    }  # fmt: skip
    assert len(others) == 4
    assert first not in others


def test_the_same_enrolment_twice_is_once(clinic: Joining, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    for line in (clinic.enrolment(), clinic.enrolment(), clinic.enrolment(now=NOW + timedelta(minutes=1))):
        assert enrol(nodes, line) == "clinic"
    assert list(nodes.all()) == ["clinic"]


def test_an_enrolment_for_elsewhere_or_from_the_future_is_refused(clinic: Joining, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    hub = Joining.make("hub", folder=tmp_path / "hub")
    for line, refusal in (
        (clinic.enrolment(federation="highlands"), WrongFederation), (hub.enrolment(), WrongFederation),
        (clinic.enrolment(now=NOW + timedelta(hours=1)), EnrolmentRefused),
    ):  # fmt: skip
        with pytest.raises(refusal):
            enrol(nodes, line)
    assert nodes.all() == {}


def test_new_keys_of_a_site_are_taken_only_when_they_are_meant_to_replace_the_old(
    clinic: Joining, tmp_path: Path
) -> None:
    nodes, renewed = Nodes(tmp_path), Joining.make("clinic", folder=tmp_path / "renewed")
    enrol(nodes, clinic.enrolment())
    with pytest.raises(EnrolmentDiffers):
        enrol(nodes, renewed.enrolment())
    assert nodes.site_of(clinic.key_id) == "clinic"
    enrol(nodes, renewed.enrolment(), replace=True)
    assert nodes.site_of(clinic.key_id) is None
    assert nodes.site_of(renewed.key_id) == "clinic"


def test_what_another_process_enrols_is_seen_at_once(clinic: Joining, ward: Joining, tmp_path: Path) -> None:
    serving, command = Nodes(tmp_path), Nodes(tmp_path)
    assert serving.site_of(clinic.key_id) is None
    for joining in (clinic, ward):
        enrol(command, joining.enrolment())
        assert serving.site_of(joining.key_id) == joining.site.name


def test_a_site_is_let_in_while_the_roster_has_it_as_an_author(clinic: Joining, ward: Joining, tmp_path: Path) -> None:
    steward, folder, nodes = Steward.generate("steward"), tmp_path / "roster", Nodes(tmp_path)
    members = [(clinic.site.public, ["author", "receiver"]), (ward.site.public, ["receiver"])]
    create_roster(folder, federation=FEDERATION, steward=steward, members=members, now=NOW)
    roster = load_roster(folder, now=NOW)
    assert nodes.why_not("clinic", roster, NOW) == "not enrolled here"
    for joining in (clinic, ward):
        enrol(nodes, joining.enrolment())
    assert nodes.admitted("clinic", roster, NOW)
    assert not nodes.admitted("ward", roster, NOW)  # it may receive, and has nothing to send
    assert not nodes.admitted("clinic", roster, NOW + timedelta(days=10_000))
    revoke_member(folder, name="clinic", steward=steward, now=NOW)
    later = load_roster(folder, now=NOW)
    assert nodes.why_not("clinic", later, NOW) == "revoked in roster version 2"


def test_an_altered_enrolment_on_the_disk_is_an_error_and_not_skipped(clinic: Joining, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    enrol(nodes, clinic.enrolment())
    (nodes.folder / "clinic.enrolment").rename(nodes.folder / "ward.enrolment")
    with pytest.raises(EnrolmentRefused):
        nodes.enrolled()


def test_an_invitation_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    fingerprint = write_invitation(INVITATION, out=tmp_path / "hub.invitation")
    assert read_invitation(tmp_path / "hub.invitation") == INVITATION
    assert fingerprint == invitation_fingerprint((tmp_path / "hub.invitation").read_bytes())


@pytest.mark.parametrize(
    "changed",
    [
        {"v": 2}, {"address": "hub"}, {"address": "hub:99999999"}, {"spans": []}, {"spans": [[3, 3]]}, {"extra": 1},
        {"mode": "plain"}, {"rounds": 0}, {"base_sha256": "AB" * 32}, {"not_fed": "0.1 \x1b[2J"},
    ],
    ids=str,
)  # fmt: skip
def test_an_invitation_of_another_shape_is_refused(changed: dict[str, object], tmp_path: Path) -> None:
    said = INVITATION.model_dump(mode="json") | changed
    (tmp_path / "x").write_bytes(canonical.dumps(said) + b"\n")
    with pytest.raises(BadInvitation):
        read_invitation(tmp_path / "x")


def test_an_invitation_has_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps(INVITATION.model_dump(mode="json"), indent=1))
    with pytest.raises(BadInvitation):
        read_invitation(tmp_path / "x")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("hub.example.org:8443", ("hub.example.org", 8443)), ("[::1]:1", ("::1", 1)), ("10.0.0.1:9", ("10.0.0.1", 9))],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "hub", ":8443", "hub:", "hub:65536", "https://hub:1", "hub:1/x", "hub :1", "a\n:1"]
)
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(BadAddress):
        split_address(address)


def test_every_refusal_names_what_to_do() -> None:
    for kind in (EnrolmentRefused, EnrolmentDiffers, WrongFederation, BadInvitation, BadAddress):
        assert issubclass(kind, NotFedError)
        assert kind.title().endswith(".")
