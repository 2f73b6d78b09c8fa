"""Adversary: a member, or somebody who wants to be one, who hands in keys, identities and successions of others.

Powers: sees all public files, has keys of its own. Lacks: the private keys of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from not_fed import canonical
from not_fed.age import (
    BadKeyText,
    HybridIdentity,
    bech32,
    check_recipient,
    recipient_key,
)
from not_fed.keys import (
    BadSignature,
    FileSigner,
    IdentityRefused,
    LogKeys,
    LogSigner,
    MalformedSigned,
    SigningKeys,
    Steward,
    SuccessionRefused,
    create_keys,
    dsse,
    load_public_identity,
    read_identity,
    read_steward_identity,
    read_succession,
    rotate_keys,
)
from not_fed.keys.identity import LOG_KEYS_TYPE, PAYLOAD_TYPE, encode, sign_identity
from not_fed.keys.signing import key_fingerprint
from not_fed.keys.steward import sign_steward_identity
from not_fed.keys.succession import sign_succession
from tests.support.key_folders import LOADS, PASSPHRASE
from tests.support.trust import NOW, Site, payload_of

SMALL_ORDER = (
    "00" * 32, "01" + "00" * 31, "00" * 31 + "80", "01" + "00" * 30 + "80", "ec" + "ff" * 30 + "7f",
    "ec" + "ff" * 31, "ed" + "ff" * 30 + "7f", "ed" + "ff" * 31, "ee" + "ff" * 30 + "7f", "ee" + "ff" * 31,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys for every purpose; low work factor, for the tests' sake."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    return tmp_path / "keys"


def test_an_identity_needs_proof_of_possession() -> None:
    """A73. Somebody else's public keys under one's own name, one key mixed in, fields edited after signing.

    Powers: has seen the honest identity, has keys of its own. Control: the honest identity is read.
    """
    honest, thief = Site.make("clinic"), Site.make("thief")
    line = sign_identity(honest.signer, seal=honest.opener.recipient, now=NOW)
    assert read_identity(line, where="test").name == "clinic"
    value = payload_of(line)
    stolen = value | {"name": "thief"}
    mixed = stolen | {"ml_dsa_65": encode(thief.signer.public.ml_dsa_65)}
    other = stolen | {"ed25519": encode(thief.signer.public.ed25519)}
    for payload in (stolen, mixed, other):
        forged = dsse.sign(canonical.dumps(payload), payload_type=PAYLOAD_TYPE, signer=thief.signer)
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")
    edited = canonical.dumps(json.loads(line) | {"payload": encode(canonical.dumps(stolen))})
    with pytest.raises(IdentityRefused):
        read_identity(edited, where="test")
    for payload in (
        value | {"extra": 1}, value | {"seal": "age1pq1qqqq"}, value | {"seal": None}, value | {"name": "../x"},
        value | {"name": "clinic\u202e"}, value | {"name": "clinic\n"}, value | {"created": "yesterday"},
        value | {"created": "2026-1-1T00:00:00Z"}, value | {"signature_policy": "ed25519"}, value | {"ed25519": "!"},
        value | {"ed25519": ""}, value | {"log": {}}, value | {"log": []}, [], None, 3,
    ):  # fmt: skip
        forged = dsse.sign(canonical.dumps(payload), payload_type=PAYLOAD_TYPE, signer=honest.signer)
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")


def test_a_log_of_somebody_else_cannot_be_claimed() -> None:
    """A73. An identity names another member's log keys, with their proof copied from the honest identity.

    Powers: has seen the honest identity, has signing keys of its own. Control: the log's own keeper may name them.
    """
    honest, thief, log = Site.make("hub"), Site.make("hub"), LogSigner.generate("hub")
    value = payload_of(sign_identity(honest.signer, seal=honest.opener.recipient, now=NOW, log=log))
    claimed = payload_of(sign_identity(thief.signer, seal=thief.opener.recipient, now=NOW)) | {"log": value["log"]}
    forged = dsse.sign(canonical.dumps(claimed), payload_type=PAYLOAD_TYPE, signer=thief.signer)
    with pytest.raises(IdentityRefused):
        read_identity(forged, where="test")
    own = sign_identity(thief.signer, seal=thief.opener.recipient, now=NOW, log=LogSigner.generate("hub"))
    mixed = payload_of(own)
    mixed["log"] = mixed["log"] | {"ml_dsa_44": value["log"]["ml_dsa_44"]}
    forged = dsse.sign(canonical.dumps(mixed), payload_type=PAYLOAD_TYPE, signer=thief.signer)
    with pytest.raises(IdentityRefused):
        read_identity(forged, where="test")
    assert read_identity(own, where="test").log
    assert LOG_KEYS_TYPE not in json.loads(own).values()  # the proof is no signed object that could travel alone


def test_a_public_key_under_which_anybody_can_sign_is_refused() -> None:
    """Own. The Ed25519 key of an identity, a steward or a log is a point of small order, in every encoding of one.

    Powers: hands in an identity whose Ed25519 half everybody can forge. Control: OpenSSL itself does take the constant
    signature (R the neutral element, S = 0); honest keys pass.
    """
    everybody = b"\1" + bytes(63)
    taken = 0
    for text in SMALL_ORDER:
        raw = bytes.fromhex(text)
        with pytest.raises(ValueError, match="small order"):
            SigningKeys(raw, bytes(1952))
        with pytest.raises(ValueError, match="small order"):
            LogKeys(raw, bytes(1312))
        for number in range(40):
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(everybody, b"message %d" % number)
            except Exception:  # noqa: BLE001  whatever it says, it did not verify
                continue
            taken += 1
    assert taken > 40, "why this check is there"
    site = Site.make("clinic")
    value = payload_of(sign_identity(site.signer, seal=site.opener.recipient, now=NOW))
    for text in SMALL_ORDER:
        payload = canonical.dumps(value | {"ed25519": encode(bytes.fromhex(text))})
        message = dsse.pae(PAYLOAD_TYPE, payload)
        ids = (key_fingerprint(bytes.fromhex(text)), site.signer.public.key_ids[1])
        forged = dsse._line(payload, PAYLOAD_TYPE, ids, (everybody, site.signer.sign(message)[1]))
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")
    for _ in range(20):
        SigningKeys(FileSigner.generate("x").public.ed25519, bytes(1952))


def test_the_points_of_small_order_are_all_there() -> None:
    """Own. The list of refused points is recomputed from the curve: every encoding of a point that 8 takes to neutral.

    Powers: knows the curve better than we do. Control: the base point is not among them.
    """
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def add(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
        (a, b), (x, y) = one, two
        k = d * a * b * x * y % p
        return (a * y + b * x) * pow(1 + k, -1, p) % p, (b * y + a * x) * pow(1 - k, -1, p) % p

    def points(y: int) -> list[tuple[int, int]]:
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        root = pow(square, (p + 3) // 8, p)
        root = root if root * root % p == square else root * pow(2, (p - 1) // 4, p) % p
        return [(root, y), (-root % p, y)] if root * root % p == square else []

    def is_small(point: tuple[int, int]) -> bool:
        for _ in range(3):
            point = add(point, point)
        return point == (0, 1)

    small = {y for text in SMALL_ORDER for y in [int.from_bytes(bytes.fromhex(text), "little") % 2**255]}
    assert all(is_small(point) for y in small for point in points(y % p))
    order_eight = [
        point for y in small for point in points(y % p) if add(add(point, point), add(point, point)) != (0, 1)
    ]
    assert len({*order_eight}) == 4  # with order 4 (two), 2 and 1 these are all eight
    assert small == {y for _, y in order_eight} | {0, 1, p - 1, p, p + 1}  # 19 and more has no second encoding
    base = 4 * pow(5, -1, p) % p
    assert not any(is_small(point) for point in points(base))


def test_a_recipient_whose_x25519_half_is_known_to_all_is_refused() -> None:
    """Own. A sealing key with an X25519 point of small order: its shared secret is zero for whoever asks.

    Powers: hands in such an identity, to fall back to ML-KEM alone or to make sealing crash. Control: an honest key.
    """
    honest = HybridIdentity(os.urandom(32)).recipient
    assert check_recipient(honest) == honest
    prefix = recipient_key(honest)[:1184]
    site = Site.make("clinic")
    for point in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", bytes.fromhex(
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")):  # fmt: skip
        recipient = bech32.encode("age1pq", prefix + point)
        with pytest.raises(BadKeyText):
            check_recipient(recipient)
        with pytest.raises(IdentityRefused):
            read_identity(sign_identity(site.signer, seal=recipient, now=NOW), where="test")


def test_public_files_do_not_stand_in_for_each_other(folder: Path) -> None:
    """Own. steward.json, identity.json and succession.json, each handed in as the others.

    Powers: sends files to a steward or a site. Control: each is read as what it is.
    """
    old = load_public_identity(folder)
    rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    reads: dict[str, Callable[[bytes], object]] = {
        "identity.json": lambda line: read_identity(line, where="test"),
        "steward.json": lambda line: read_steward_identity(line, where="test"),
        "succession.json": lambda line: read_succession(line, old=old.signing),
    }
    for name, read in reads.items():
        for other in reads:
            line = (folder / other).read_bytes().removesuffix(b"\n")
            if name == other:
                read(line)
                continue
            with pytest.raises(MalformedSigned):
                read(line)
    shutil.copyfile(folder / "steward.json", folder / "identity.json")
    for load in LOADS.values():
        with pytest.raises(MalformedSigned):
            load(folder, passphrase=PASSPHRASE)


def test_a_site_cannot_pass_for_a_steward_with_its_signing_keys() -> None:
    """Own. A steward's identity with somebody else's roster keys, or signed by a site's keys.

    Powers: a member of the roster with signing keys. Control: the steward's own is read.
    """
    steward, thief = Steward.generate("anna"), FileSigner.generate("anna")
    line = sign_steward_identity(steward, now=NOW)
    kind = json.loads(line)["payloadType"]
    assert read_steward_identity(line, where="test").keys == steward.public
    mixed = payload_of(line) | {"ed25519": encode(thief.public.ed25519)}
    for payload in (payload_of(line), mixed):
        with pytest.raises(IdentityRefused):
            read_steward_identity(dsse.sign(canonical.dumps(payload), payload_type=kind, signer=thief), where="test")


def test_a_succession_by_other_keys_is_refused() -> None:
    """Own. A succession from the victim's identity to the attacker's, signed by the attacker, or by the new keys.

    Powers: a member of the roster; has seen the victim's public files. Control: signed by the old keys it holds.
    """
    victim, thief = Site.make("clinic"), Site.make("clinic")
    by_thief = sign_succession(thief.signer, old=victim.public, new=thief.public, now=NOW)
    with pytest.raises(BadSignature):
        read_succession(by_thief, old=victim.signer.public)
    renamed = json.loads(by_thief)  # with the victim's key ids on it
    for entry, key_id in zip(renamed["signatures"], victim.signer.public.key_ids, strict=True):
        entry["keyid"] = key_id
    with pytest.raises(BadSignature):
        read_succession(canonical.dumps(renamed), old=victim.signer.public)
    honest = sign_succession(victim.signer, old=victim.public, new=thief.public, now=NOW)
    assert read_succession(honest, old=victim.signer.public).new == thief.public.fingerprint


def test_a_succession_serves_one_name_and_two_identities(folder: Path) -> None:
    """Own. An honest succession replayed for another member, for another new identity, or backwards.

    Powers: has seen an honest rotation; can name itself as it likes. Control: for whom it was made it holds.
    """
    old = load_public_identity(folder)
    new = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2).new
    line = (folder / "succession.json").read_bytes().removesuffix(b"\n")
    succession = read_succession(line, old=old.signing)
    succession.check(name="clinic", old=old.fingerprint, new=new)
    thief = Site.make("clinic").public
    newest = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2).new
    for name, before, after in (
        ("hub", old.fingerprint, new), ("hub", old.fingerprint, replace(new, name="hub")),
        ("clinic", old.fingerprint, replace(new, name="hub")), ("clinic", old.fingerprint, thief),
        ("clinic", thief.fingerprint, new), ("clinic", old.fingerprint, newest), ("clinic", new.fingerprint, old),
        ("clinic", old.fingerprint, replace(new, log=None)), ("clinic", old.fingerprint, replace(new, seal=old.seal)),
    ):  # fmt: skip
        with pytest.raises(SuccessionRefused):
            succession.check(name=name, old=before, new=after)
