"""Key folders: what is written, and what is not. How they are attacked is in tests/attacks/test_keys*.py."""

from __future__ import annotations

import copy
import pickle
import stat
from pathlib import Path

import pyrage
import pytest

from not_fed.age import (
    HybridIdentity,
    decrypt_with_passphrase,
)
from not_fed.errors import InputError, NotFedError
from not_fed.files import OutputExists
from not_fed.keys import (
    Secret,
    create_keys,
    load_opener,
    load_public_identity,
    load_signer,
    load_steward,
    read_identity,
)
from not_fed.keys.identity import sign_identity
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
