"""Adversary: whoever puts a label on a sealed file: strangers, insiders with a label of their own, a relay that mixes.

Powers: any label, its own keys, every label it ever saw. Lacks: the sender's keys, and the keys that open the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from not_fed.envelope import label_path, verify_sealed
from not_fed.envelope.dsse import BadSignature, MalformedSigned, NewerFormat, Stale
from not_fed.envelope.label import MAX_LABEL_BYTES, LabelMismatch
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.envelope.open import NothingToVerify
from not_fed.errors import TrustError
from not_fed.trust.members import KeysRetired, UnknownMember
from tests.support.attacks import assert_opens, check_outside, seal_again
from tests.support.trust import NOW, Federation, Forger, Parcel, Site, assert_refused, days, organ_bytes, payload_of


def test_an_insider_cannot_claim_anothers_parcel_with_a_label(forger: Forger, parcel: Parcel) -> None:
    """A35. The lab signs a label of its own over the clinic's ciphertext: label and waybill disagree.

    Powers: a member with both of its own keys, on the way. Control: under the sender's label it opens.
    """
    said = payload_of(parcel.sealed.label)
    lab = parcel.federation.lab.signer
    for label in (
        forger.sign(said | {"from": "lab"}, LABEL_TYPE, lab),
        forger.sign(said | {"round": 4}, LABEL_TYPE),
        forger.sign(said | {"to": ["hub"]}, LABEL_TYPE),
    ):
        assert check_outside(parcel, label)  # the relay cannot tell
        assert_refused(parcel, LabelMismatch, label=label)
    assert parcel.open(label=parcel.sealed.label).sender == "clinic"


def test_a_relay_forwards_only_what_a_member_labelled(forger: Forger, parcel: Parcel) -> None:
    """A36. A label by a stranger, by an insider in another's name, for strangers, of another federation, or expired.

    Powers: any keys and any name; an insider's own keys. Control: the sender's label is accepted.
    """
    said = payload_of(parcel.sealed.label)
    assert check_outside(parcel, parcel.sealed.label)  # control
    mallory = Site.make("mallory").signer
    refusals: list[tuple[bytes, type[TrustError] | tuple[type[TrustError], ...]]] = [
        (forger.sign(said | {"from": "mallory"}, LABEL_TYPE, mallory), UnknownMember),
        (forger.sign(said, LABEL_TYPE, mallory), BadSignature),
        (forger.sign(said, LABEL_TYPE, parcel.federation.lab.signer), BadSignature),
        (forger.sign(said | {"to": ["hub", "nobody"]}, LABEL_TYPE), UnknownMember),
        (forger.sign(said | {"to": ["lab", "hub"]}, LABEL_TYPE), MalformedSigned),
        (forger.sign(said | {"federation": "highlands"}, LABEL_TYPE), LabelMismatch),
        (
            forger.sign(said | {"expires": "2026-11-24T11:00:00Z", "issued": "2026-11-01T00:00:00Z"}, LABEL_TYPE),
            (Stale, KeysRetired),
        ),
    ]
    for line, kind in refusals:
        with pytest.raises(kind):
            check_outside(parcel, line)
    with pytest.raises(Stale):
        check_outside(parcel, parcel.sealed.label, now=NOW + days(15))


def test_a_label_is_for_one_file(parcel: Parcel) -> None:
    """A36. A true label is attached to a file of another digest or size.

    Powers: a sender or relay that mixes labels and files. Control: with its own file it is accepted.
    """
    with pytest.raises(LabelMismatch):
        check_outside(parcel, parcel.sealed.label, sealed_sha256="00" * 32)
    with pytest.raises(LabelMismatch):
        check_outside(parcel, parcel.sealed.label, size_bytes=1)
    assert check_outside(parcel, parcel.sealed.label)


def test_without_label_and_key_nothing_is_called_trusted(parcel: Parcel) -> None:
    """Own. The label is withheld, and whoever verifies has no key: the answer must not be yes.

    Powers: a relay that deletes labels. Control: the label alone, or a key alone, is enough for an answer.
    """
    roster, hub = parcel.federation.roster, parcel.federation.hub
    with pytest.raises(NothingToVerify):
        verify_sealed(parcel.path, roster=roster, now=NOW, label=None)
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label).passport is None
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener).passport


def test_labels_of_two_parcels_cannot_be_swapped(tmp_path: Path, federation: Federation) -> None:
    """Own. Two parcels of one sender, to the same recipients in the same round, trade their labels.

    Powers: a relay that mixes labels and files. Control: each with its own label opens.
    """
    parcels = []
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(value=value)))
    for one, other in ((0, 1), (1, 0)):
        assert_refused(parcels[one], LabelMismatch, label=parcels[other].sealed.label)
        assert_opens(parcels[one], label=parcels[one].sealed.label)


def test_a_label_does_not_follow_a_file_that_was_sealed_again(forger: Forger, parcel: Parcel) -> None:
    """Own. The lab seals the clinic's frame anew and sends it under the clinic's old label, or under one of its own.

    Powers: a recipient with the plaintext of what it was sent, and its own keys. Control: the original and its label.
    """
    whole, said = parcel.path.read_bytes(), payload_of(parcel.sealed.label)
    forger.write()
    assert_refused(parcel, LabelMismatch, label=parcel.sealed.label)
    data = parcel.path.read_bytes()
    own = {"from": "lab", "sealed": {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}}
    label = forger.sign(said | own, LABEL_TYPE, parcel.federation.lab.signer)
    assert_refused(parcel, LabelMismatch, label=label)
    parcel.path.write_bytes(whole)
    assert_opens(parcel, label=parcel.sealed.label)


def test_two_labels_for_one_file_say_the_same_or_one_is_refused(forger: Forger, parcel: Parcel) -> None:
    """Own. Equivocation: the sender labels one file twice, for the relay with other recipients, round or time.

    Powers: the sender with both of its keys. Control: a second label that says the same is accepted by both.
    """
    said = payload_of(parcel.sealed.label)
    for other in ({"to": ["clinic", "hub"]}, {"to": ["hub"]}, {"to": ["clinic", "hub", "lab"]}, {"round": 2}):
        label = forger.sign(said | other, LABEL_TYPE)
        assert check_outside(parcel, label)
        assert_refused(parcel, LabelMismatch, label=label)
    again = forger.sign(said, LABEL_TYPE)
    assert again != parcel.sealed.label
    assert check_outside(parcel, again)
    assert_opens(parcel, label=again)


def test_a_sealed_file_is_not_its_own_label(parcel: Parcel) -> None:
    """Own. Sealed file and label trade names, or one of them stands for both.

    Powers: renames files in the mailbox. Control: under their own names they verify and open.
    """
    label, sealed = label_path(parcel.path).read_bytes(), parcel.path.read_bytes()
    assert_refused(parcel, MalformedSigned, label=sealed[:MAX_LABEL_BYTES])
    assert_refused(parcel, MalformedSigned, label=sealed)
    parcel.path.write_bytes(label)
    assert_refused(parcel, TrustError)
    with pytest.raises(TrustError):
        verify_sealed(parcel.path, roster=parcel.federation.roster, now=NOW, label=label)
    parcel.path.write_bytes(sealed)
    assert_opens(parcel, label=label)


def test_a_label_is_one_line_and_small(parcel: Parcel) -> None:
    """Own. Two lines, a line feed too many, a leading space, an empty file, or more than 64 KiB stand for a label.

    Powers: writes any label file. Control: the label with its one line feed is accepted.
    """
    label = parcel.sealed.label
    for other in (b"", b"\n", label + b"\n\n", label + b"\n" + label, b" " + label, label + b"\r\n", label + b"\0",
                  b"\xef\xbb\xbf" + label, b"x" * (MAX_LABEL_BYTES + 1), b"{" * MAX_LABEL_BYTES):  # fmt: skip
        with pytest.raises(MalformedSigned):
            check_outside(parcel, other)
        assert_refused(parcel, MalformedSigned, label=other)
    assert check_outside(parcel, label + b"\n")
    assert_opens(parcel, label=label + b"\n")


def test_a_label_of_a_later_version_is_named_as_such(forger: Forger, parcel: Parcel) -> None:
    """A36, A89. The label is of version 2, or a waybill stands in its place.

    Powers: an honest sender with a newer not-fed; a member who mixes lines. Control: version 1 is accepted.
    """
    said = payload_of(parcel.sealed.label)
    with pytest.raises(NewerFormat):
        check_outside(parcel, forger.sign(said, LABEL_TYPE.replace("v1", "v2")))
    for line in (forger.waybill_line, forger.sign(said, LABEL_TYPE.replace("label", "lable"))):
        with pytest.raises(MalformedSigned):
            check_outside(parcel, line)
    assert check_outside(parcel, forger.sign(said, LABEL_TYPE))


def test_a_label_outlives_neither_its_time_nor_its_waybill(forger: Forger, parcel: Parcel) -> None:
    """Own. The label says that the file is good for longer than the waybill inside does.

    Powers: the sender with both of its keys. Control: within the waybill's time the file opens.
    """
    said = payload_of(parcel.sealed.label)
    longer = forger.sign(said | {"expires": "2027-02-01T00:00:00Z"}, LABEL_TYPE)
    late = NOW.replace(year=2027, month=1)
    assert check_outside(parcel, longer, now=late)
    assert_refused(parcel, Stale, label=longer, now=late)
    assert_opens(parcel, label=longer)


def test_one_organ_sealed_twice_has_two_labels(parcel: Parcel) -> None:
    """Own. The label of an earlier sealing of the same organ, to the same recipients, is played back for the new file.

    Powers: a relay that keeps every label. Control: the new file's own label is accepted.
    """
    first = parcel.sealed.label
    again = seal_again(parcel)
    parcel.path = again.path
    assert_refused(parcel, LabelMismatch, label=first)
    assert_opens(parcel, label=again.label)


def test_a_label_tells_the_relay_nothing_about_the_organ(tmp_path: Path, federation: Federation) -> None:
    """Own. Labels of two different organs are compared, to learn what is inside: digests, base, span, author, metrics.

    Powers: a relay that keeps every label. Control: sender, recipients and round are what it may know, and are there.
    """
    parcel = Parcel(tmp_path, federation, changes={"metrics": {"perplexity": 12.25}})
    said = payload_of(parcel.sealed.label)
    assert set(said) == {"federation", "round", "from", "to", "issued", "expires", "sealed"}
    assert (said["from"], said["to"], said["round"]) == ("clinic", ["hub", "lab"], 3)
    inside = parcel.passport
    for secret in (inside.organ_sha256, inside.base_sha256, inside.salt, "perplexity", "12.25", "llama",
                   parcel.sealed.waybill_id, hashlib.sha256(parcel.passport_line).hexdigest()):  # fmt: skip
        for data in (parcel.sealed.label, str(said).encode(), parcel.path.read_bytes()):
            assert secret.encode() not in data
