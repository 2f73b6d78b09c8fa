"""Adversary: whoever gets at a PKCS#11 token, at the library that drives it, or at the URI that names both.

Powers: named in each test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest

from not_fed.keys import (
    create_keys,
    load_public_identity,
    load_signer,
)
from not_fed.keys.hsm import Pkcs11Signer, TokenFailed, TokenKeyExposed, TokenModuleRefused, check_module
from not_fed.keys.token_uri import TokenUriRefused, read_token_uri
from tests.support.key_folders import CANARY, MAIN, PASSPHRASE
from tests.support.token import PIN, SoftToken, soft_token


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    """One token for this page."""
    with soft_token(tmp_path_factory.mktemp("token")) as made:
        yield made


def test_a_pin_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path, soft: SoftToken) -> None:
    """Own. A PKCS#11 URI with pin-value or pin-source is given to --hsm.

    Powers: reads arguments of others' processes, or writes the file or program that pin-source names. Control: with the
    PIN in a private file the keys are made, and the PIN shows up nowhere.
    """
    for name, text in (("pw", CANARY), ("pin", PIN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    command = [
        sys.executable,
        "-c",
        MAIN,
        "keys",
        "create",
        "clinic",
        "--out",
        "keys",
        "--passphrase-file",
        "pw",
        "--hsm",
    ]
    for extra in (f"&pin-value={PIN}", "&pin-source=file:pin", "&pin-source=%7Ccat%20pin"):
        done = subprocess.run([*command, soft.uri + extra, "--pin-file", "pin"], cwd=tmp_path, capture_output=True,
                              text=True, check=False, env=os.environ | soft.environment)  # fmt: skip
        assert done.returncode in (2, 4)  # though the PIN's file alone would do
        assert PIN not in done.stdout + done.stderr
        assert not (tmp_path / "keys").exists()
    done = subprocess.run([*command, soft.uri, "--pin-file", "pin"], cwd=tmp_path, capture_output=True, text=True,
                          check=False, env=os.environ | soft.environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert PIN not in done.stdout + done.stderr
    assert (
        load_signer(tmp_path / "keys", passphrase=PASSPHRASE).public == load_public_identity(tmp_path / "keys").signing
    )


@pytest.mark.parametrize(
    "path",
    [
        "libsofthsm2.so", "./m.so", "../m.so", "~/m.so", "$HOME/m.so", "${HOME}/m.so", "%24HOME/m.so", "/usr/../m.so",
        "/usr/lib/softhsm/../softhsm/libsofthsm2.so", "/$HOME/m.so", "/usr/lib/%2A.so", "/usr/lib/m%00.so", "//", "/",
    ],
)  # fmt: skip
def test_a_module_is_named_by_a_plain_absolute_path(
    path: str, soft: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. Relative paths, home folders, variables, patterns and NULs in a URI's module-path.

    Powers: sets the working folder or variables of the process, to have its library loaded. Control: SoftHSM's path.
    """
    loaded: list[str] = []
    monkeypatch.setattr(pkcs11, "lib", loaded.append)
    uri, _ = read_token_uri(f"pkcs11:token=a?module-path={path}")
    with pytest.raises(TokenModuleRefused):
        Pkcs11Signer.generate("clinic", token=replace(soft.token, uri=uri))
    assert loaded == []
    assert check_module(soft.module) == soft.module


def test_a_module_that_others_could_replace_is_not_loaded(tmp_path: Path, soft: SoftToken) -> None:
    """Own. A library, or a folder above it, that others may write to, or a link that leads there.

    Powers: another account on the machine, which would run its code in ours. Control: the same file, made private.
    """
    place = tmp_path / "folder" / "m.so"
    place.parent.mkdir()
    shutil.copyfile(soft.module, place)
    (tmp_path / "link.so").symlink_to(place)
    for mode, target in ((0o666, place), (0o620, place), (0o777, place.parent), (0o770, place.parent)):
        target.chmod(mode)
        for path in (place, tmp_path / "link.so"):
            with pytest.raises(TokenModuleRefused):
                check_module(path)
        target.chmod(0o700)
    assert check_module(tmp_path / "link.so") == place.resolve()


def test_other_attributes_of_a_token_uri_are_refused() -> None:
    """Own. RFC 7512 attributes that would choose another object, module or PIN than the person believes.

    Powers: sends a URI to be pasted. Control: token and module-path alone.
    """
    good = "pkcs11:token=a?module-path=/m.so"
    read_token_uri(good)
    for text in (
        good + "&module-name=evil", good + "&pin-source=/etc/passwd", good + "&module-path=/evil.so",
        "pkcs11:token=a;token=b?module-path=/m.so", "pkcs11:token=a;object=b?module-path=/m.so", good + "&x-evil=1",
        "pkcs11:slot-id=0;token=a?module-path=/m.so", good.replace("pkcs11", "file"), good + "\n", good + "?b",
    ):  # fmt: skip
        if text == good + "?b":
            assert read_token_uri(text)[0].module_path == Path("/m.so?b")  # a name, not a second query
            continue
        with pytest.raises(TokenUriRefused):
            read_token_uri(text)


def test_a_key_that_can_leave_the_token_is_refused(tmp_path: Path, soft: SoftToken) -> None:
    """Own. The token holds, under the id that sign.key names, a key that was made extractable: a copy may exist.

    Powers: knows the PIN, exchanged the key in the token. Control: the key that was made to stay.
    """
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    signer = load_signer(tmp_path / "keys", passphrase=PASSPHRASE)
    assert isinstance(signer, Pkcs11Signer)
    signer.destroy()
    with pkcs11.lib(str(soft.module)).get_token(token_label=soft.label).open(user_pin=PIN, rw=True) as session:
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: bytes.fromhex("06032b6570")}, local=True
        )
        curve.generate_keypair(
            id=signer.token.uri.object_id, store=True, mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
            private_template={pkcs11.Attribute.EXTRACTABLE: True},
        )  # fmt: skip
    with pytest.raises(TokenKeyExposed):
        load_signer(tmp_path / "keys", passphrase=PASSPHRASE)


def test_a_faulty_signature_of_a_token_is_not_handed_out(
    tmp_path: Path, soft: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. The token answers with a signature that does not hold, as one does whose arithmetic was disturbed.

    Powers: glitches the token, or sits between it and the machine; two such signatures give an Ed25519 key away.
    Control: undisturbed, the signature verifies.
    """
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, token=soft.token)
    signer = load_signer(tmp_path / "keys", passphrase=PASSPHRASE)
    assert signer.public.both_signed(b"message", signer.sign(b"message"))

    class Faulty:
        def sign(self, message: bytes, **_: object) -> bytes:
            return bytes(64)

    monkeypatch.setattr("not_fed.keys.hsm._private_key", lambda *_: Faulty())
    with pytest.raises(TokenFailed):
        signer.sign(b"message")
