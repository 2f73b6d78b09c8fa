"""Our container in another implementation, and its files here: age-encryption 0.3.1, in TypeScript."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from not_fed.age import (
    BadContainer,
    HybridIdentity,
    NotForThisKey,
    check_recipient,
    decrypt,
    decrypt_with_passphrase,
    encrypt,
    encrypt_with_passphrase,
)
from not_fed.age.hybrid import identity_text
from tests.support.second_age import bech32, chunks, hybrid_key, read_header, unwrap
from tests.support.second_writer import Party
from tests.support.typage import Typage
from tests.support.vectors import SEALED, Vector, files_in, members

CHUNK = 65_536
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_what_we_seal_for_each_of_three(typage: Typage, size: int) -> None:
    seeds, plain = [os.urandom(32) for _ in range(3)], os.urandom(size)
    sealed = encrypt(plain, recipients=[HybridIdentity(seed).recipient for seed in seeds])
    for seed in seeds:
        assert typage.decrypt(sealed, identity=identity_text(seed)) == plain
    with pytest.raises(ValueError, match="no identity matched"):
        typage.decrypt(sealed, identity=identity_text(os.urandom(32)))


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_it_seals_for_each_of_two(typage: Typage, size: int) -> None:
    plain, own = os.urandom(size), HybridIdentity(os.urandom(32))
    identity, recipient = typage.identity()
    assert check_recipient(recipient) == recipient
    sealed = typage.encrypt(plain, recipients=[recipient, own.recipient])
    assert decrypt(sealed, identity=own) == plain
    assert decrypt(sealed, identity=HybridIdentity.from_text(identity)) == plain
    with pytest.raises(NotForThisKey):
        decrypt(sealed, identity=HybridIdentity(os.urandom(32)))


def test_recipients_of_its_weaker_kind_are_refused(typage: Typage) -> None:
    """It encrypts to X25519 beside a hybrid key when asked to; a sealed organ has hybrid recipients and no others."""
    own = HybridIdentity(os.urandom(32))
    weak = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
    with pytest.raises(BadContainer):
        decrypt(typage.encrypt(b"organ", recipients=[own.recipient, weak]), identity=own)


def test_both_derive_the_same_recipient_from_an_identity(typage: Typage) -> None:
    for word in members():
        seed = Party(word).seed("seal")
        assert typage.recipient(identity_text(seed)) == HybridIdentity(seed).recipient == members()[word]["seal"]
        assert len(bech32(members()[word]["seal"], "age1pq")) == 1216


@pytest.mark.parametrize("size", SIZES)
def test_key_files_open_in_both_directions(typage: Typage, size: int) -> None:
    plain = os.urandom(size)
    ours = encrypt_with_passphrase(plain, passphrase="pässword".encode(), work_factor=10)
    assert typage.decrypt(ours, passphrase="pässword") == plain
    assert (
        decrypt_with_passphrase(typage.encrypt(plain, passphrase="pässword"), passphrase="pässword".encode()) == plain
    )


@pytest.mark.parametrize("path", [path for path in files_in(SEALED) if path.stem.startswith("opened-")],
                         ids=lambda path: path.stem)  # fmt: skip
def test_it_recovers_the_organ_of_each_frozen_vector_that_opens(typage: Typage, path: Path) -> None:
    """What docs/format.md promises for recovery: the age file, then all after the third line feed, without padding."""
    vector = Vector.load(path)
    identities = vector.identities() or (members()["hub"]["identity"],)
    plain = typage.decrypt(vector.sealed(), identity=identities[-1])
    _, waybill, _, rest = plain.split(b"\n", 3)
    said = json.loads(base64.b64decode(json.loads(waybill)["payload"]))
    organ = rest[: said["organ"]["size_bytes"]]
    assert hashlib.sha256(organ).hexdigest() == said["organ"]["sha256"]
    assert said["organ"]["sha256"] == vector.content["expect"].get("organ_sha256", said["organ"]["sha256"])
    assert rest[len(organ) :] == bytes(said["pad"])


def test_the_second_reader_opens_its_files_too(typage: Typage) -> None:
    identity, recipient = typage.identity()
    stanzas, _, _, rest = read_header(typage.encrypt(b"organ" * 20_000, recipients=[recipient]))
    key = unwrap(stanzas[0], hybrid_key(identity))
    assert key is not None
    assert b"".join(chunks(key, rest)) == b"organ" * 20_000
