"""What goes out to others: identities with a log's keys, a steward's identity, successions, fingerprints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.errors import NotFedError
from not_fed.files import NotAFile
from not_fed.keys import (
    BadSignature,
    FileSigner,
    IdentityRefused,
    KeyMismatch,
    LogSigner,
    MalformedSigned,
    NewerFormat,
    Secret,
    Steward,
    SuccessionRefused,
    create_keys,
    dsse,
    load_log_signer,
    load_public_identity,
    load_steward,
    load_steward_identity,
    read_identity,
    read_steward_identity,
    read_succession,
)
from not_fed.keys.identity import fingerprint, sign_identity
from not_fed.keys.steward import PAYLOAD_TYPE as STEWARD_TYPE
from not_fed.keys.steward import sign_steward_identity
from not_fed.keys.succession import PAYLOAD_TYPE as SUCCESSION_TYPE
from not_fed.keys.succession import sign_succession
from tests.support.trust import NOW, Site, payload_of

PASSPHRASE = Secret(b"correct horse battery staple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of a clinic that is steward and keeps the log."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    return tmp_path / "keys"


def test_a_logs_keys_are_in_the_identity_and_in_its_fingerprint(folder: Path) -> None:
    identity, log = load_public_identity(folder), load_log_signer(folder, passphrase=PASSPHRASE)
    assert identity.log == log.public
    assert log.name == "clinic"
    assert log.public.both_signed(b"note", (log.sign_ed25519(b"note"), log.sign_ml_dsa_44(b"note")))
    assert not log.public.both_signed(b"another", (log.sign_ed25519(b"note"), log.sign_ml_dsa_44(b"note")))
    without = fingerprint(identity.ed25519, identity.ml_dsa_65, identity.seal)
    assert identity.fingerprint == fingerprint(identity.ed25519, identity.ml_dsa_65, identity.seal, log.public)
    assert identity.fingerprint != without
    assert len({*identity.signing.key_ids, *log.public.key_ids}) == 4


def test_a_folder_without_a_log_says_so(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2)
    assert load_public_identity(tmp_path / "keys").log is None
    assert payload_of((tmp_path / "keys" / "identity.json").read_bytes())["log"] is None
    for load in (load_log_signer, load_steward):
        with pytest.raises(NotAFile):
            load(tmp_path / "keys", passphrase=PASSPHRASE)
    with pytest.raises(NotAFile):
        load_steward_identity(tmp_path / "keys")


def test_log_keys_of_another_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    create_keys(tmp_path / "other", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    for name, load in (("log.key", load_log_signer), ("roster.key", load_steward)):
        honest = (folder / name).read_bytes()
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(KeyMismatch):
            load(folder, passphrase=PASSPHRASE)
        (folder / name).write_bytes(honest)
        assert load(folder, passphrase=PASSPHRASE).name == "clinic"  # control


def test_a_steward_shows_keys_that_sign_for_themselves(folder: Path) -> None:
    identity, steward = load_steward_identity(folder), load_steward(folder, passphrase=PASSPHRASE)
    assert (identity.name, identity.keys) == ("clinic", steward.public)
    assert load_steward_identity(folder / "steward.json") == identity
    assert re.fullmatch(r"[a-z2-7]{4}( [a-z2-7]{4}){12}", identity.fingerprint)
    assert identity.fingerprint != load_public_identity(folder).fingerprint


def test_any_change_to_a_stewards_identity_or_a_succession_is_a_typed_refusal() -> None:
    steward, old, new = Steward.generate("s"), Site.make("clinic"), Site.make("clinic")
    lines = (
        (sign_steward_identity(steward, now=NOW), lambda line: read_steward_identity(line, where="test")),
        (sign_succession(old.signer, old=old.public, new=new.public, now=NOW),
         lambda line: read_succession(line, old=old.signer.public)),
    )  # fmt: skip
    for line, read in lines:
        read(line)  # control
        for place in range(0, len(line), 89):
            with pytest.raises(NotFedError) as refused:
                read(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
            assert refused.value.exit_code == 6


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"}, {"name": "a\n"}, {"name": None}, {"created": "yesterday"}, {"created": 5}, {"extra": 1},
        {"signature_policy": "ed25519"}, {"ed25519": "!"}, {"ed25519": ""}, {"ml_dsa_65": "AAAA"}, {"seal": "age1pq1"},
    ],
)  # fmt: skip
def test_a_stewards_identity_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    steward = Steward.generate("s")
    ed25519, ml_dsa_65 = steward.private_keys()
    signer = FileSigner("s", ed25519=ed25519, ml_dsa_65=ml_dsa_65)
    payload = payload_of(sign_steward_identity(steward, now=NOW))
    read_steward_identity(dsse.sign(canonical.dumps(payload), payload_type=STEWARD_TYPE, signer=signer), where="t")
    forged = dsse.sign(canonical.dumps(payload | change), payload_type=STEWARD_TYPE, signer=signer)
    with pytest.raises(IdentityRefused):
        read_steward_identity(forged, where="test")


def test_a_succession_of_another_shape_is_refused() -> None:
    old, new = Site.make("clinic"), Site.make("clinic")
    payload = payload_of(sign_succession(old.signer, old=old.public, new=new.public, now=NOW))

    def read(value: object, kind: str = SUCCESSION_TYPE) -> object:
        line = dsse.sign(canonical.dumps(value), payload_type=kind, signer=old.signer)
        return read_succession(line, old=old.signer.public)

    read(payload)  # control
    for value in (
        [], None, payload | {"extra": 1}, payload | {"old": "x"}, payload | {"new": payload["new"].upper()},
        payload | {"issued": "2026-13-01T00:00:00Z"}, payload | {"name": "a b"}, {"name": "clinic"},
    ):  # fmt: skip
        with pytest.raises(MalformedSigned):
            read(value)
    with pytest.raises(NewerFormat):
        read(payload, "application/vnd.not-fed.succession.v2+json")


def test_a_succession_is_checked_against_what_is_on_record() -> None:
    old, new, other = Site.make("clinic"), Site.make("clinic"), Site.make("clinic")
    line = sign_succession(old.signer, old=old.public, new=new.public, now=NOW)
    succession = read_succession(line, old=old.signer.public)
    succession.check(name="clinic", old=old.public.fingerprint, new=new.public)  # control
    for name, before, after in (
        ("hub", old.public.fingerprint, new.public),
        ("clinic", other.public.fingerprint, new.public),
        ("clinic", old.public.fingerprint, other.public),
        ("clinic", new.public.fingerprint, old.public),
    ):
        with pytest.raises(SuccessionRefused):
            succession.check(name=name, old=before, new=after)
    with pytest.raises(BadSignature):
        read_succession(line, old=new.signer.public)


def test_a_log_proves_that_it_holds_its_keys() -> None:
    site, log = Site.make("clinic"), LogSigner.generate("clinic")
    line = sign_identity(site.signer, seal=site.opener.recipient, now=NOW, log=log)
    assert read_identity(line, where="test").log == log.public
    value = payload_of(line)
    for change in (
        {"proof": value["log"]["proof"][::-1]}, {"proof": value["log"]["proof"][:1]}, {"proof": []}, {"proof": None},
        {"proof": value["log"]["proof"] * 2}, {"ed25519": value["ed25519"]}, {"ml_dsa_44": value["ml_dsa_65"]},
        {"ml_dsa_44": "!"}, {"extra": 1},
    ):  # fmt: skip
        payload = canonical.dumps(value | {"log": value["log"] | change})
        forged = dsse.sign(payload, payload_type="application/vnd.not-fed.identity.v1+json", signer=site.signer)
        with pytest.raises(IdentityRefused):
            read_identity(forged, where="test")


def run(folder: Path, *words: str) -> tuple[int, Any, str]:
    """The command with `--json`."""
    done = subprocess.run([sys.executable, "-c", "from not_fed.cli.main import main; main()", *words], cwd=folder,
                          capture_output=True, text=True, check=False)  # fmt: skip
    return done.returncode, json.loads(done.stdout) if "--json" in words and done.stdout else done.stdout, done.stderr


def test_the_command_creates_and_shows_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(PASSPHRASE.reveal())
    (tmp_path / "pw").chmod(0o600)
    code, made, _ = run(tmp_path, "keys", "create", "clinic", "--out", "k", "--steward", "--log", "--passphrase-file",
                        "pw", "--json")  # fmt: skip
    assert code == 0
    identity, steward = load_public_identity(tmp_path / "k"), load_steward_identity(tmp_path / "k")
    assert (made["schema"], made["name"], made["folder"]) == ("not-fed/keys/1", "clinic", "k")
    assert (made["fingerprint"], made["keeps_log"]) == (identity.fingerprint, True)
    assert made["steward"]["fingerprint"] == steward.fingerprint
    assert run(tmp_path, "keys", "show", "k", "--json")[1] == {
        key: value for key, value in made.items() if key != "folder"
    }
    code, shown, _ = run(tmp_path, "keys", "show", "k/steward.json", "--json")
    assert (code, set(shown)) == (0, {"schema", "steward"})
    code, text, _ = run(tmp_path, "keys", "show", "k/identity.json")
    assert (code, identity.fingerprint in text) == (0, True)
    (tmp_path / "other").write_text("{}")
    code, _, said = run(tmp_path, "keys", "show", "other", "--json")
    assert (code, json.loads(said)["code"]) == (6, "signed-malformed")
    code, text, _ = run(tmp_path, "keys", "show", "--help")
    assert "13 groups" in text
