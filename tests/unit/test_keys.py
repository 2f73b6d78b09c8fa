"""Key folders: what is written, and every way in which one is refused."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import pyrage
import pytest

from not_fed import canonical
from not_fed.age import (
    BadContainer,
    HybridIdentity,
    PassphraseRefused,
    decrypt_with_passphrase,
    encrypt_with_passphrase,
)
from not_fed.errors import InputError, NotFedError
from not_fed.files import NotAFile, OutputExists
from not_fed.keys import (
    IdentityRefused,
    KeyExposed,
    KeyMismatch,
    MalformedSigned,
    Secret,
    create_keys,
    dsse,
    load_opener,
    load_public_identity,
    load_signer,
    load_steward,
    read_identity,
)
from not_fed.keys.identity import PAYLOAD_TYPE, sign_identity
from tests.support.trust import NOW, Site

PASSPHRASE = Secret(b"correct horse battery staple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A steward's key folder; low work factor, for the tests' sake."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True)
    return tmp_path / "keys"


def test_what_is_created_can_be_loaded(folder: Path) -> None:
    public = load_public_identity(folder / "identity.json")
    signer, opener = load_signer(folder, passphrase=PASSPHRASE), load_opener(folder, passphrase=PASSPHRASE)
    steward = load_steward(folder, passphrase=PASSPHRASE)
    assert signer.public == public.signing
    assert opener.recipient == public.seal
    assert steward.public != signer.public
    assert public.name == signer.name == opener.name == "clinic"
    assert public.signing.both_signed(b"message", signer.sign(b"message"))
    assert not public.signing.both_signed(b"another", signer.sign(b"message"))
    assert load_public_identity(folder) == public


def test_a_fingerprint_is_thirteen_groups_of_four(folder: Path) -> None:
    groups = load_public_identity(folder).fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 13
    assert Site.make("a").public.fingerprint != Site.make("a").public.fingerprint


def test_secrets_are_private_and_encrypted(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("seal.key", "sign.key", "roster.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert (folder / name).read_bytes().startswith(b"age-encryption.org/v1\n-> scrypt ")
        assert b"PRIVATE" not in (folder / name).read_bytes()
        assert b"AGE-SECRET" not in (folder / name).read_bytes()


def test_another_implementation_can_recover_the_keys(folder: Path) -> None:
    """In ten years, without us: `age -d seal.key` prints an identity that `age -d -i` takes."""
    text = pyrage.passphrase.decrypt((folder / "seal.key").read_bytes(), PASSPHRASE.reveal().decode()).decode()
    assert HybridIdentity.from_text(text.splitlines()[-1]).recipient == load_public_identity(folder).seal
    assert b"BEGIN PRIVATE KEY" in pyrage.passphrase.decrypt(
        (folder / "sign.key").read_bytes(), PASSPHRASE.reveal().decode()
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
@pytest.mark.parametrize("where", ["seal.key", "."])
def test_a_key_that_others_can_touch_is_refused(folder: Path, mode: int, where: str) -> None:
    (folder / where).chmod(mode | (0o100 if where == "." else 0))
    with pytest.raises(KeyExposed):
        load_opener(folder, passphrase=PASSPHRASE)
    (folder / where).chmod(0o700)
    assert load_opener(folder, passphrase=PASSPHRASE).name == "clinic"  # control


def test_another_users_key_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeyExposed):
        load_signer(folder, passphrase=PASSPHRASE)


def test_links_and_special_files_are_refused(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    with pytest.raises(KeyExposed):
        load_signer(link, passphrase=PASSPHRASE)
    (folder / "sign.key").rename(folder / "real")
    for make in (lambda: (folder / "sign.key").symlink_to("real"), lambda: os.mkfifo(folder / "sign.key")):
        make()
        with pytest.raises(NotAFile):
            load_signer(folder, passphrase=PASSPHRASE)
        (folder / "sign.key").unlink()
    with pytest.raises(NotAFile):
        load_signer(folder, passphrase=PASSPHRASE)
    with pytest.raises(NotAFile):
        load_signer(folder.parent / "nowhere", passphrase=PASSPHRASE)


@pytest.mark.parametrize("load", [load_signer, load_opener, load_steward])
def test_a_wrong_passphrase_says_nothing_but_that(folder: Path, load: Any) -> None:  # noqa: ANN401
    with pytest.raises(PassphraseRefused) as refused:
        load(folder, passphrase=Secret(b"correct horse battery stapler"))
    assert "stapler" not in json.dumps(refused.value.as_json())


def test_every_byte_of_a_key_file_counts(folder: Path) -> None:
    for name, load in (("seal.key", load_opener), ("sign.key", load_signer)):
        path = folder / name
        whole = path.read_bytes()
        for place in range(0, len(whole), 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises((PassphraseRefused, BadContainer)):
                load(folder, passphrase=PASSPHRASE)
        path.write_bytes(whole)
        assert load(folder, passphrase=PASSPHRASE).name == "clinic"


def test_keys_of_one_purpose_never_serve_another(folder: Path, tmp_path: Path) -> None:
    """Files swapped within a folder, and between two folders under one passphrase."""
    create_keys(tmp_path / "other", name="clinic", passphrase=PASSPHRASE, work_factor=2)
    for name, load, stand_in in (
        ("sign.key", load_signer, folder / "roster.key"),
        ("roster.key", load_steward, folder / "sign.key"),
        ("sign.key", load_signer, folder / "seal.key"),
        ("seal.key", load_opener, folder / "sign.key"),
        ("sign.key", load_signer, tmp_path / "other" / "sign.key"),
        ("seal.key", load_opener, tmp_path / "other" / "seal.key"),
    ):
        shutil.copytree(folder, tmp_path / "mixed")
        shutil.copyfile(stand_in, tmp_path / "mixed" / name)
        with pytest.raises(KeyMismatch):
            load(tmp_path / "mixed", passphrase=PASSPHRASE)
        shutil.rmtree(tmp_path / "mixed")


def test_a_hostile_key_file_of_right_passphrase_is_refused(folder: Path) -> None:
    for plain in (b"", b"AGE-SECRET-KEY-PQ-1QQQQ", b"\xff" * 50, b"one\ntwo\n"):
        sealed = encrypt_with_passphrase(plain, passphrase=PASSPHRASE.reveal(), work_factor=2)
        (folder / "seal.key").write_bytes(sealed)
        (folder / "sign.key").write_bytes(sealed)
        for load in (load_opener, load_signer):
            with pytest.raises(KeyMismatch):
                load(folder, passphrase=PASSPHRASE)


def test_nothing_is_created_over_something_or_without_a_passphrase(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists):
        create_keys(folder, name="clinic", passphrase=PASSPHRASE, work_factor=2)
    with pytest.raises(InputError):
        create_keys(tmp_path / "new", name="clinic", passphrase=Secret(b""), work_factor=2)
    for name in ("", ".hidden", "../x", "a b", "a\n", "x" * 65, "ü", "-x"):
        with pytest.raises(InputError):
            create_keys(tmp_path / "new", name=name, passphrase=PASSPHRASE, work_factor=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys"]


def test_the_default_work_factor_is_the_documented_one(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE)
    line = (tmp_path / "keys" / "seal.key").read_bytes().split(b"\n")[1]
    assert line.endswith(b" 18")


def test_secrets_cannot_be_printed_pickled_or_copied(folder: Path) -> None:
    signer = load_signer(folder, passphrase=PASSPHRASE)
    assert repr(PASSPHRASE) == "Secret(hidden)"
    assert "correct" not in f"{PASSPHRASE} {PASSPHRASE!r}"
    for value in (
        PASSPHRASE,
        signer,
        load_steward(folder, passphrase=PASSPHRASE),
        load_opener(folder, passphrase=PASSPHRASE),
    ):
        assert signer.pem()[30:60].decode("latin-1") not in repr(value)
        for copier in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                copier(value)


def test_an_identity_needs_proof_of_possession() -> None:
    """Somebody else's public keys under one's own name; one's own name with one key swapped; edited fields."""
    honest, thief = Site.make("clinic"), Site.make("thief")
    line = sign_identity(honest.signer, seal=honest.opener.recipient, now=NOW)
    assert read_identity(line, where="test").name == "clinic"  # control
    value = json.loads(base64.b64decode(json.loads(line)["payload"]))
    stolen = value | {"name": "thief"}
    mixed = value | {"name": "thief", "ml_dsa_65": base64.b64encode(thief.signer.public.ml_dsa_65).decode()}
    for payload in (stolen, mixed):
        forged = dsse.sign(canonical.dumps(payload), payload_type=PAYLOAD_TYPE, signer=thief.signer)
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")
    edited = canonical.dumps(json.loads(line) | {"payload": base64.b64encode(canonical.dumps(stolen)).decode()})
    with pytest.raises(IdentityRefused):
        read_identity(edited, where="test")
    for payload in (
        value | {"extra": 1}, value | {"seal": "age1pq1qqqq"}, value | {"seal": None}, value | {"name": "../x"},
        value | {"created": "yesterday"}, value | {"created": "2026-1-1T00:00:00Z"},
        value | {"signature_policy": "ed25519"}, value | {"ed25519": "!"}, value | {"ed25519": ""}, [], None, 3,
    ):  # fmt: skip
        forged = dsse.sign(canonical.dumps(payload), payload_type=PAYLOAD_TYPE, signer=honest.signer)
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")
    with pytest.raises(MalformedSigned):
        read_identity(b"{}", where="test")


def test_any_change_to_an_identity_is_a_typed_refusal() -> None:
    site = Site.make("clinic")
    line = sign_identity(site.signer, seal=site.opener.recipient, now=NOW)
    for place in range(0, len(line), 97):
        with pytest.raises(NotFedError) as refused:
            read_identity(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :], where="test")
        assert refused.value.exit_code == 6


def test_key_files_hold_what_the_folder_says(folder: Path) -> None:
    plain = decrypt_with_passphrase((folder / "sign.key").read_bytes(), passphrase=PASSPHRASE.reveal())
    assert plain.count(b"BEGIN PRIVATE KEY") == 2
