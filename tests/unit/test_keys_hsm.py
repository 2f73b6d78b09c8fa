"""The second Signer: Ed25519 in a PKCS#11 token. It serves wherever the first does, and says what goes wrong."""

from __future__ import annotations

import base64
import copy
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pkcs11
import pytest

from not_fed.age import decrypt_with_passphrase
from not_fed.envelope import issue_passport, new_passport
from not_fed.envelope.passport import parse_passport
from not_fed.errors import NotFedError
from not_fed.keys import (
    FileSigner,
    KeyMismatch,
    Secret,
    Signer,
    create_keys,
    load_opener,
    load_public_identity,
    load_signer,
    read_identity,
    rotate_keys,
)
from not_fed.keys.hsm import (
    Pkcs11Signer,
    Token,
    TokenFailed,
    TokenMissing,
    TokenModuleRefused,
    TokenPinLocked,
    TokenPinRefused,
    TokenSupportMissing,
)
from not_fed.keys.identity import sign_identity
from not_fed.keys.token_uri import TokenUri, TokenUriRefused, read_token_uri
from tests.support.token import PIN, SoftToken, soft_token
from tests.support.trust import NOW, Site, organ_bytes

PASSPHRASE = Secret(b"correct horse battery staple")


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    """One token for this page."""
    with soft_token(tmp_path_factory.mktemp("token")) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, soft: SoftToken) -> Path:
    """A key folder whose Ed25519 key is in the token."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    return tmp_path / "keys"


def objects(soft: SoftToken) -> int:
    with pkcs11.lib(str(soft.module)).get_token(token_label=soft.label).open(user_pin=PIN) as session:
        return len(list(session.get_objects()))


def test_a_tokens_signature_is_one_like_any_other(folder: Path, soft: SoftToken, tmp_path: Path) -> None:
    """An identity and a passport by each of the two signers go through the same verification."""
    (tmp_path / "knee.organ").write_bytes(organ_bytes())
    passport = new_passport(tmp_path / "knee.organ", author="clinic", federation="f", round_number=1, now=NOW)
    seal = Site.make("clinic").opener.recipient
    signers: list[Signer] = [load_signer(folder, passphrase=PASSPHRASE), FileSigner.generate("clinic")]
    assert [type(signer) for signer in signers] == [Pkcs11Signer, FileSigner]
    for signer in signers:
        identity = read_identity(sign_identity(signer, seal=seal, now=NOW), where="test")
        assert identity.signing == signer.public
        unverified, claimed = parse_passport(issue_passport(passport, signer=signer))
        unverified.verify(identity.signing)
        assert claimed.author == "clinic"
        assert [len(signature) for signature in signer.sign(b"message")] == [64, 3309]


def test_one_folder_with_a_token_is_used_as_one_without(folder: Path) -> None:
    public = load_public_identity(folder)
    signer = load_signer(folder, passphrase=PASSPHRASE)  # the PIN is in the file: no new option anywhere
    assert signer.public == public.signing
    assert load_opener(folder, passphrase=PASSPHRASE).recipient == public.seal


def test_the_private_ed25519_key_is_nowhere_in_the_folder(folder: Path, soft: SoftToken) -> None:
    plain = decrypt_with_passphrase((folder / "sign.key").read_bytes(), passphrase=PASSPHRASE.reveal())
    uri, _, pem = plain.partition(b"\n")
    assert uri.startswith(b"pkcs11:token=not-fed%20tests;id=%")
    assert plain.count(b"BEGIN PRIVATE KEY") == 1  # ML-DSA-65, which no such token knows
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    assert bytes.fromhex("060960864801650304 0312".replace(" ", "")) in der  # 2.16.840.1.101.3.4.3.18
    assert PIN.encode() not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with pkcs11.lib(str(soft.module)).get_token(token_label=soft.label).open(user_pin=PIN) as session:
        for key in session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}):
            assert (key[pkcs11.Attribute.EXTRACTABLE], key[pkcs11.Attribute.SENSITIVE]) == (False, True)
            with pytest.raises(pkcs11.AttributeSensitive):
                key[pkcs11.Attribute.VALUE]


def test_softhsm_has_ed25519_and_lacks_ml_dsa(soft: SoftToken) -> None:
    """Why the other half stays in a file. When a token learns CKM_ML_DSA (0x1d, PKCS#11 3.2), this test says so."""
    library = pkcs11.lib(str(soft.module))
    mechanisms = {int(mechanism) for mechanism in library.get_token(token_label=soft.label).slot.get_mechanisms()}
    assert {0x1055, 0x1057} <= mechanisms  # CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA
    assert not {0x1C, 0x1D} & mechanisms  # CKM_ML_DSA_KEY_PAIR_GEN, CKM_ML_DSA
    assert library.cryptoki_version < (3, 2)


def test_rotation_makes_a_new_key_in_the_token_and_deletes_the_old_one(folder: Path, soft: SoftToken) -> None:
    before, old = objects(soft), load_signer(folder, passphrase=PASSPHRASE)
    done = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    new = load_signer(folder, passphrase=PASSPHRASE)
    assert done.new.signing == new.public != old.public
    assert done.new.signing.both_signed(b"m", new.sign(b"m"))
    assert objects(soft) == before
    with pytest.raises(TokenMissing):
        old.sign(b"m")


def test_a_folder_that_cannot_be_made_leaves_no_key_in_the_token(soft: SoftToken, tmp_path: Path) -> None:
    before = objects(soft)
    (tmp_path / "keys").mkdir()
    with pytest.raises(NotFedError):
        create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr("not_fed.files.write_atomic", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        create_keys(tmp_path / "new", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    assert objects(soft) == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize("act", ["create", "rotate"])
def test_an_interrupt_after_the_decisive_moment_leaves_the_key_that_the_folder_names(
    folder: Path, soft: SoftToken, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """^C while the temporary folder is deleted, which after a rotation is the old key folder."""
    place = folder if act == "rotate" else folder.with_name("new")
    old, remove = load_public_identity(folder).signing, shutil.rmtree

    def interrupted(path: Path, **more: Any) -> None:  # noqa: ANN401
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        remove(path, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", interrupted)
        if act == "rotate":
            rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
        else:
            create_keys(place, name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    signer = load_signer(place, passphrase=PASSPHRASE)  # TokenMissing, had the new key been destroyed
    assert signer.public.both_signed(b"m", signer.sign(b"m"))
    assert signer.public == load_public_identity(place).signing != old


def test_a_wrong_pin_a_missing_token_and_a_missing_module_are_told_apart(soft: SoftToken, tmp_path: Path) -> None:
    soft.add("twin")
    soft.add("twin")
    pkcs11.unload(str(soft.module))
    good, uri = soft.token, soft.token.uri
    for token, kind in (
        (Token(uri, Secret(b"0000-wrong")), TokenPinRefused),
        (Token(uri, Secret(b"")), TokenPinRefused),
        (Token(uri, Secret(b"\xff\xfe")), TokenPinRefused),
        (Token(uri, Secret(b"9" * 500)), TokenPinRefused),
        (replace(good, uri=replace(uri, token="elsewhere")), TokenMissing),
        (replace(good, uri=replace(uri, token="twin")), TokenMissing),
        (replace(good, uri=replace(uri, serial="0000")), TokenMissing),
        (replace(good, uri=replace(uri, module_path=Path("/usr/lib/none.so"))), TokenModuleRefused),
        (replace(good, uri=replace(uri, module_path=Path("/usr/lib"))), TokenModuleRefused),
        (replace(good, uri=replace(uri, module_path=Path("/etc/passwd"))), TokenModuleRefused),
    ):
        with pytest.raises(kind) as refused:
            create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=token)
        assert "0000-wrong" not in str(refused.value.as_json())
        assert list(tmp_path.iterdir()) == []
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=good)  # control


def test_a_serial_number_tells_two_tokens_of_one_label_apart(soft: SoftToken, tmp_path: Path) -> None:
    serial = pkcs11.lib(str(soft.module)).get_token(token_label=soft.label).serial.decode()
    token = replace(soft.token, uri=replace(soft.token.uri, serial=serial))
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=token)
    assert load_signer(tmp_path / "keys", passphrase=PASSPHRASE).name == "clinic"


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (pkcs11.PinLocked, TokenPinLocked, "security officer"),
        (pkcs11.PinExpired, TokenPinRefused, "lock"),
        (pkcs11.PinIncorrect, TokenPinRefused, "lock after a few wrong ones"),
        (pkcs11.MechanismInvalid, TokenFailed, "nothing was signed"),
        (pkcs11.DeviceRemoved, TokenFailed, "nothing was signed"),
        (pkcs11.GeneralError, TokenFailed, "nothing was signed"),
    ],
)
def test_what_a_token_says_becomes_a_typed_refusal_with_a_next_step(
    soft: SoftToken, monkeypatch: pytest.MonkeyPatch, error: type[Exception], kind: type[NotFedError], hint: str
) -> None:
    """SoftHSM never locks a PIN, so a library stands in that answers as a token that did."""

    class Library:
        def get_token(self, **_: object) -> None:
            raise error("text of a module: may say anything")

    monkeypatch.setattr(pkcs11, "lib", lambda _: Library())
    with pytest.raises(kind) as refused:
        Pkcs11Signer.generate("clinic", token=soft.token)
    assert hint in refused.value.hint
    assert "may say anything" not in str(refused.value.as_json())


def test_without_the_optional_package_the_message_says_what_to_install(
    soft: SoftToken, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pkcs11", None)
    with pytest.raises(TokenSupportMissing) as refused:
        load_signer(folder, passphrase=PASSPHRASE)
    assert "not-fed[hsm]" in refused.value.hint


def test_a_signer_with_a_token_cannot_be_printed_pickled_or_copied(folder: Path) -> None:
    signer = load_signer(folder, passphrase=PASSPHRASE)
    assert repr(signer) == "Pkcs11Signer('clinic', hidden)"
    assert isinstance(signer, Pkcs11Signer)
    assert PIN not in repr(signer.token)
    for copier in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            copier(signer)


def test_a_key_that_was_deleted_from_the_token_is_missed(folder: Path) -> None:
    signer = load_signer(folder, passphrase=PASSPHRASE)
    assert isinstance(signer, Pkcs11Signer)
    signer.destroy()
    with pytest.raises(TokenMissing):
        load_signer(folder, passphrase=PASSPHRASE)


def test_another_key_under_the_same_name_is_not_taken(folder: Path, soft: SoftToken) -> None:
    signer = load_signer(folder, passphrase=PASSPHRASE)
    assert isinstance(signer, Pkcs11Signer)
    signer.destroy()
    with pkcs11.lib(str(soft.module)).get_token(token_label=soft.label).open(user_pin=PIN, rw=True) as session:
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: bytes.fromhex("06032b6570")}, local=True
        )
        curve.generate_keypair(
            id=signer.token.uri.object_id, store=True, mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN
        )
    with pytest.raises(KeyMismatch):
        load_signer(folder, passphrase=PASSPHRASE)
    with pytest.raises(TokenFailed):  # had it been exchanged after loading
        signer.sign(b"message")


def test_a_uri_is_read_as_it_was_written() -> None:
    for uri in (
        TokenUri(token="a", module_path=Path("/m.so")),
        TokenUri(token="a;b?c&d=%41 ü", module_path=Path("/a b/ü&x=1;/m.so"), serial="0 1", object_id=bytes(range(16))),
    ):
        assert read_token_uri(uri.text()) == (uri, None)
        again, pin = read_token_uri(uri.text(pin=Secret(b"p&i=n;\xff")))
        assert again == uri
        assert pin is not None
        assert pin.reveal() == b"p&i=n;\xff"


@pytest.mark.parametrize(
    "text",
    [
        "", "pkcs11:", "pkcs11:token=a", "pkcs11:?module-path=/m.so", "pkcs11:token=?module-path=/m.so", "token=a",
        "pkcs11:token=a;token=b?module-path=/m.so", "pkcs11:token=a?module-path=/m.so&module-path=/n.so",
        "pkcs11:token=a;slot-id=0?module-path=/m.so", "pkcs11:token=a?module-name=m", "pkcs11:token=%FF?module-path=/m",
        "pkcs11:token=a?module-path=/m.so&pin-source=file:/etc/pin", "pkcs11:token=a?module-path=/m.so&pin-source=|id",
        "pkcs11:token=a;type=public?module-path=/m.so", "pkcs11:token?module-path=/m.so", "PKCS11:token=a",
        "pkcs11:token=a\n?module-path=/m.so", "pkcs11:token=ü?module-path=/m.so",
        "pkcs11:token=" + "a" * 4096 + "?module-path=/m.so",
    ],
)  # fmt: skip
def test_any_other_uri_is_refused(text: str) -> None:
    with pytest.raises(TokenUriRefused):
        read_token_uri(text)
