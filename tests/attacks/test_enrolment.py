"""Adversary: somebody who wants a coordinator to take its connection for another site's.

Powers: has keys of its own and every public key of the others, chooses any name, writes any enrolment, and reaches the
administrator before the real site does.
Lacks: the private keys of a site on the roster.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from not_fed import canonical
from not_fed.coordinator.nodes import EnrolmentDiffers, Nodes
from not_fed.envelope.dsse import MalformedSigned
from not_fed.envelope.enrolment import (
    ENROLMENT_TYPE,
    Enrolment,
    EnrolmentRefused,
    new_enrolment,
    sign_enrolment,
    verify_enrolment,
)
from not_fed.errors import NotFedError
from not_fed.keys import Steward, dsse
from not_fed.trust.roster import create_roster, load_roster, rotate_member
from tests.support.enrolments import Joining
from tests.support.trust import FEDERATION, NOW


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Joining:
    return Joining.make("clinic", folder=tmp_path_factory.mktemp("clinic"))


@pytest.fixture(scope="module")
def thief(tmp_path_factory: pytest.TempPathFactory) -> Joining:
    return Joining.make("clinic", folder=tmp_path_factory.mktemp("thief"))


def enrol(nodes: Nodes, line: bytes) -> str:
    return nodes.enrol(line, federation=FEDERATION, coordinator="hub", now=NOW).enrolment.site


def test_nobody_enrols_with_the_identity_of_another_site(clinic: Joining, thief: Joining) -> None:
    """Own. The clinic's public identity, with the thief's connection key, signed by the thief.

    Powers: every public file. Control: the clinic's own enrolment is accepted.
    """
    verify_enrolment(clinic.enrolment(), where="x")
    forged = new_enrolment(
        federation=FEDERATION, identity=clinic.identity, node_key=thief.node_key, not_fed="0.1.0",
        signer=thief.site.signer, now=NOW,
    )  # fmt: skip
    with pytest.raises(EnrolmentRefused):
        verify_enrolment(forged, where="x")


def test_the_connection_key_in_an_enrolment_cannot_be_exchanged(clinic: Joining, thief: Joining) -> None:
    """Own. On its way to the administrator the enrolment's connection key is replaced by the thief's.

    Powers: the file, as a mail server has it. Control: untouched it is accepted.
    """
    line = clinic.enrolment()
    verify_enrolment(line, where="x")
    envelope = json.loads(line)
    said = json.loads(base64.b64decode(envelope["payload"])) | {"node_key": " ".join(thief.node_key.split()[:2])}
    envelope["payload"] = base64.b64encode(canonical.dumps(said)).decode()
    with pytest.raises(EnrolmentRefused):
        verify_enrolment(canonical.dumps(envelope), where="x")


def test_an_identity_enrols_under_its_own_name_only(clinic: Joining, thief: Joining, tmp_path: Path) -> None:
    """Own. A site with honest keys calls its enrolment by another's name.

    Powers: keys of its own. Control: under its own name it is accepted.
    """
    ward = Joining.make("ward", folder=tmp_path)
    verify_enrolment(ward.enrolment(), where="x")
    said, _ = verify_enrolment(ward.enrolment(), where="x")
    with pytest.raises(EnrolmentRefused):
        verify_enrolment(sign_enrolment(said.model_copy(update={"site": "clinic"}), signer=ward.site.signer), where="x")


def test_a_second_site_of_the_same_name_does_not_replace_the_first(
    clinic: Joining, thief: Joining, tmp_path: Path
) -> None:
    """Own. After the clinic has enrolled, somebody enrols as the clinic with keys of its own.

    Powers: keys of its own, the name. Control: the clinic's own enrolment, again, changes nothing.
    """
    nodes = Nodes(tmp_path)
    enrol(nodes, clinic.enrolment())
    with pytest.raises(EnrolmentDiffers):
        enrol(nodes, thief.enrolment())
    enrol(nodes, clinic.enrolment())
    assert (nodes.site_of(clinic.key_id), nodes.site_of(thief.key_id)) == ("clinic", None)


def test_two_sites_never_share_a_connection_key(clinic: Joining, tmp_path: Path) -> None:
    """Own. A site enrols with the clinic's connection key as its own, so that the clinic's connection counts as its.

    Powers: the clinic's public connection key. Control: with a key of its own it enrols.
    """
    nodes, ward = Nodes(tmp_path / "home"), Joining.make("ward", folder=tmp_path)
    (tmp_path / "home").mkdir()
    enrol(nodes, clinic.enrolment())
    with pytest.raises(EnrolmentDiffers):
        enrol(nodes, ward.enrolment(node_key=clinic.node_key))
    assert enrol(nodes, ward.enrolment()) == "ward"


def test_a_name_on_the_roster_with_other_keys_opens_nothing(clinic: Joining, thief: Joining, tmp_path: Path) -> None:
    """Own. The thief enrols as the clinic before the clinic does; the stewards' roster has the real clinic.

    Powers: reaches the administrator first, who compares nothing. Control: with the clinic's own enrolment it is open.
    """
    steward, folder = Steward.generate("steward"), tmp_path / "roster"
    create_roster(
        folder, federation=FEDERATION, steward=steward, members=[(clinic.site.public, ["author"])], now=NOW
    )  # fmt: skip
    roster = load_roster(folder, now=NOW)
    for joining, open_ in ((thief, False), (clinic, True)):
        home = tmp_path / str(open_)
        home.mkdir()
        nodes = Nodes(home)
        enrol(nodes, joining.enrolment())
        assert nodes.admitted("clinic", roster, NOW) is open_


def test_an_enrolment_with_stolen_keys_opens_nothing_once_the_stewards_know(clinic: Joining, tmp_path: Path) -> None:
    """Own. The clinic's keys were stolen; the stewards have its new ones and called the old ones stolen.

    Powers: the old private keys, and their enrolment that is still on the coordinator's disk.
    Control: it was open before, and a site that changed keys without a theft stays open.
    """
    steward = Steward.generate("steward")
    for stolen in (False, True):
        folder, renewed = tmp_path / f"roster-{stolen}", Joining.make("clinic", folder=tmp_path / f"new-{stolen}")
        create_roster(
            folder, federation=FEDERATION, steward=steward, members=[(clinic.site.public, ["author"])], now=NOW
        )  # fmt: skip
        home = tmp_path / f"home-{stolen}"
        home.mkdir()
        nodes = Nodes(home)
        enrol(nodes, clinic.enrolment())
        assert nodes.admitted("clinic", load_roster(folder, now=NOW), NOW)
        rotate_member(folder, identity=renewed.site.public, steward=steward, stolen=stolen, now=NOW)
        assert nodes.admitted("clinic", load_roster(folder, now=NOW), NOW) is not stolen


@pytest.mark.parametrize(
    "changed",
    [
        {"node_key": ""}, {"node_key": "ssh-rsa AAAA"}, {"node_key": "ecdsa-sha2-nistp384 AAAA"}, {"identity": "{}"},
        {"site": "../../etc/passwd"}, {"site": "a\nb"}, {"not_fed": "\x1b[2J"}, {"v": 2}, {"extra": True},
        {"node_key": "x" * 100_000}, {"identity": "x" * 100_000},
    ],
    ids=lambda changed: str(changed)[:40],
)  # fmt: skip
def test_no_content_of_an_enrolment_is_more_than_a_refusal(changed: dict[str, object], clinic: Joining) -> None:
    """Own. A site signs an enrolment of another shape: names that leave the folder, keys that are none, other fields.

    Powers: keys of its own, every byte of the payload. Control: the same, unchanged, is accepted.
    """
    said = json.loads(base64.b64decode(json.loads(clinic.enrolment())["payload"]))
    Enrolment.from_payload(canonical.dumps(said), where="x")
    line = dsse.sign(canonical.dumps(said | changed), payload_type=ENROLMENT_TYPE, signer=clinic.site.signer)
    with pytest.raises((EnrolmentRefused, MalformedSigned)) as refusal:
        verify_enrolment(line, where="x")
    assert isinstance(refusal.value, NotFedError)
    assert "\x1b" not in str(refusal.value)
