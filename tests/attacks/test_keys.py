"""Adversary: somebody on the same machine, or a thief of key files and of backups.

Powers: named in each test. Lacks: the passphrase, unless a test says otherwise.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from not_fed import canonical
from not_fed.age import (
    BadContainer,
    NotForThisKey,
    PassphraseRefused,
    recipient_key,
)
from not_fed.age.hybrid import identity_text
from not_fed.files import NotAFile
from not_fed.keys import (
    FileSigner,
    KeyExposed,
    KeyMismatch,
    PublicIdentity,
    Secret,
    create_keys,
    load_opener,
    load_public_identity,
    load_signer,
    rotate_keys,
)
from not_fed.keys import folder as reading
from not_fed.keys.signing import key_fingerprint, to_pem
from tests.support.key_folders import CANARY, LOADS, PASSPHRASE, load_all, plain_of, put, sealed_to


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys for every purpose; low work factor, for the tests' sake."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    return tmp_path / "keys"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610, 0o602])
def test_a_key_that_others_can_touch_is_refused(folder: Path, mode: int) -> None:
    """A69. Key files and the folder itself with access for the group or for all.

    Powers: another account on the machine. Control: with the access taken away every key loads.
    """
    for name in (*LOADS, "."):
        (folder / name).chmod(mode | (0o100 if name == "." else 0))
        for load in LOADS.values() if name == "." else [LOADS[name]]:
            with pytest.raises(KeyExposed):
                load(folder, passphrase=PASSPHRASE)
        (folder / name).chmod(0o700 if name == "." else 0o600)
    load_all(folder)


def test_another_users_key_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A69. A folder, or a file in it, that belongs to another account.

    Powers: owns the folder that an administrator is talked into using. Control: as its owner every key loads.
    """
    load_all(folder)
    real = os.fstat

    def foreign(kind: Callable[[int], bool]) -> Callable[[int], os.stat_result]:
        def fstat(descriptor: int) -> os.stat_result:
            status = real(descriptor)
            fields = list(status)
            fields[4] += kind(status.st_mode)  # st_uid
            return os.stat_result(fields)

        return fstat

    for kind in (stat.S_ISDIR, stat.S_ISREG):
        monkeypatch.setattr(os, "fstat", foreign(kind))
        for load in LOADS.values():
            with pytest.raises(KeyExposed):
                load(folder, passphrase=PASSPHRASE)


def test_links_and_special_files_are_not_keys(folder: Path) -> None:
    """A69. A symbolic link to the folder, to a key file, and a FIFO, a folder or nothing in its place.

    Powers: writes beside the keys. Control: with the file back in its place every key loads.
    """
    link = folder.parent / "link"
    link.symlink_to(folder)
    for load in LOADS.values():
        with pytest.raises(KeyExposed):
            load(link, passphrase=PASSPHRASE)
        with pytest.raises(KeyExposed):
            load(folder / "identity.json", passphrase=PASSPHRASE)
        with pytest.raises(NotAFile):
            load(folder.parent / "nowhere", passphrase=PASSPHRASE)
    for name, load in LOADS.items():
        place = folder / name
        place.rename(folder / "real")
        for make in (lambda: place.symlink_to("real"), lambda: os.mkfifo(place, 0o600), lambda: place.mkdir()):  # noqa: B023
            make()
            with pytest.raises(NotAFile):
                load(folder, passphrase=PASSPHRASE)
            place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
        with pytest.raises(NotAFile):
            load(folder, passphrase=PASSPHRASE)
        (folder / "real").rename(place)
    load_all(folder)


def test_a_folder_that_is_swapped_between_check_and_reading_is_read_as_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A69. While the keys are loaded, the folder is moved away and a link to the attacker's folder put in its place.

    Powers: writes to the parent folder, knows the passphrase of keys of its own. Control: loading again sees the link.
    """
    create_keys(tmp_path / "evil", name="clinic", passphrase=PASSPHRASE, work_factor=2)
    honest, real = load_public_identity(folder), reading.read_identity

    def swapping(line: bytes, *, where: str) -> PublicIdentity:
        identity = real(line, where=where)
        if not (tmp_path / "moved").exists():
            folder.rename(tmp_path / "moved")
            folder.symlink_to(tmp_path / "evil")
        return identity

    monkeypatch.setattr(reading, "read_identity", swapping)
    assert load_signer(folder, passphrase=PASSPHRASE).public == honest.signing
    with pytest.raises(KeyExposed):
        load_signer(folder, passphrase=PASSPHRASE)


def test_a_wrong_passphrase_and_an_altered_file_look_the_same(folder: Path) -> None:
    """A70. Guesses near the passphrase, and one bit changed in the file, draw one and the same message.

    Powers: reads the key files, guesses. Control: the passphrase opens every one of them.
    """
    said = set()
    for name, load in LOADS.items():
        for guess in (CANARY[:-1], CANARY + "0", CANARY.upper(), CANARY + "\n", "", " " + CANARY):
            with pytest.raises(PassphraseRefused) as refused:
                load(folder, passphrase=Secret(guess.encode()))
            said.add(canonical.dumps(refused.value.as_json()))
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(PassphraseRefused) as refused:
            load(folder, passphrase=PASSPHRASE)
        said.add(canonical.dumps(refused.value.as_json()))
        (folder / name).write_bytes(whole)
    assert len(said) == 1
    assert CANARY[:10].encode() not in said.pop()
    load_all(folder)


def test_every_byte_of_a_key_file_counts(folder: Path) -> None:
    """A70. Every third byte changed, and the file cut short or made longer, at any place.

    Powers: writes to the key files. Control: the whole files load.
    """
    for name in ("sign.key", "log.key"):
        path, load = folder / name, LOADS[name]
        whole = path.read_bytes()
        changed = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
        changed += [whole[:at] for at in range(0, len(whole), 7)] + [whole + b"\0", whole + b"\n", whole * 2]
        for data in changed:
            path.write_bytes(data)
            with pytest.raises((PassphraseRefused, BadContainer)):
                load(folder, passphrase=PASSPHRASE)
        path.write_bytes(whole)
    load_all(folder)


def test_a_key_file_cannot_ask_for_all_memory(folder: Path) -> None:
    """A71. scrypt work factors from 21 (2 GiB) to 99, and other spellings of a number.

    Powers: puts a key file of its own in the folder. Control: the file with the work factor it was made with loads.
    """
    path = folder / "sign.key"
    whole = path.read_bytes()
    line = whole.split(b"\n")[1]
    assert line.endswith(b" 2")
    started = time.perf_counter()
    for factor in (
        b"21",
        b"22",
        b"30",
        b"31",
        b"62",
        b"63",
        b"64",
        b"99",
        b"100",
        b"0",
        b"02",
        b"-2",
        b"2.0",
        b"",
        b"x",
    ):
        path.write_bytes(whole.replace(line, line[:-1] + factor, 1))
        with pytest.raises(BadContainer):
            load_signer(folder, passphrase=PASSPHRASE)
    assert time.perf_counter() - started < 5
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(whole)
    load_all(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10


def test_a_seed_of_zeros_or_of_another_length_is_no_key(folder: Path) -> None:
    """A72. Sealing seeds of zeros, too short, too long and of another kind; signing keys whose secret is all zeros.

    Powers: wrote the key file while the folder was made, or broke the random numbers. Control: the honest file loads.
    """
    honest = plain_of(folder, "seal.key")
    comments = honest[: honest.rindex(b"AGE-SECRET")]
    for seed in (bytes(32), bytes(31), b"\1" * 31, b"\1" * 33, b""):
        put(folder, "seal.key", comments + identity_text(seed).encode() + b"\n")
        with pytest.raises(KeyMismatch):
            load_opener(folder, passphrase=PASSPHRASE)
    put(folder, "seal.key", honest)
    _, _, ml_dsa_65 = plain_of(folder, "sign.key").partition(b"-----END PRIVATE KEY-----\n")
    zeros = to_pem(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(ValueError, match="all-zero"):
        FileSigner.from_pem("clinic", zeros + ml_dsa_65)
    FileSigner.from_pem("clinic", to_pem(Ed25519PrivateKey.from_private_bytes(b"\1" * 32)) + ml_dsa_65)
    load_all(folder)


def test_a_key_of_one_purpose_never_serves_another(folder: Path, tmp_path: Path) -> None:
    """A72. Every key file put in the place of every other one, and of the same one in another folder.

    Powers: moves files between folders of one passphrase. Control: each file in its own place loads.
    """
    create_keys(tmp_path / "other", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    for name, load in LOADS.items():
        whole = (folder / name).read_bytes()
        for stand_in in (*(folder / other for other in LOADS if other != name), tmp_path / "other" / name):
            (folder / name).write_bytes(stand_in.read_bytes())
            with pytest.raises(KeyMismatch):
                load(folder, passphrase=PASSPHRASE)
        (folder / name).write_bytes(whole)
    load_all(folder)


def test_nothing_rides_along_in_a_key_file(folder: Path) -> None:
    """Own. Bytes before, between and after the keys of a file: a third key, a comment, the same key twice.

    Powers: knows the passphrase, hides something that another reader would take. Control: the two keys alone.
    """
    for name, load in LOADS.items():
        if name == "seal.key":
            continue
        honest = plain_of(folder, name)
        first, end, second = honest.partition(b"-----END PRIVATE KEY-----\n")
        for plain in (
            honest + b"x", honest + b"\n", b"\n" + honest, honest + first + end, first + end + b"# note\n" + second,
            second + first + end, first + end, second, first + end + first + end, honest.replace(b"\n", b"\r\n"), b"",
            b"\xff" * 50,
        ):  # fmt: skip
            put(folder, name, plain)
            with pytest.raises(KeyMismatch):
                load(folder, passphrase=PASSPHRASE)
        put(folder, name, honest)
    load_all(folder)


def test_a_signing_key_that_was_rotated_away_signs_for_nobody(folder: Path, tmp_path: Path) -> None:
    """Own. A backup's old sign.key, or the whole old identity, is put back into the rotated folder.

    Powers: holds a backup from before the rotation, and the passphrase. Control: the new key signs for the new one.
    """
    shutil.copytree(folder, tmp_path / "backup")
    old = load_signer(tmp_path / "backup", passphrase=PASSPHRASE)
    new = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2).new
    assert not new.signing.both_signed(b"message", old.sign(b"message"))
    for name in ("sign.key", "seal.key", "identity.json"):
        current = (folder / name).read_bytes()
        shutil.copyfile(tmp_path / "backup" / name, folder / name)
        for load in (load_signer, load_opener) if name == "identity.json" else (LOADS[name],):
            with pytest.raises(KeyMismatch):
                load(folder, passphrase=PASSPHRASE)
        (folder / name).write_bytes(current)
    assert new.signing.both_signed(b"message", load_signer(folder, passphrase=PASSPHRASE).sign(b"message"))


def test_a_retired_sealing_key_is_never_the_current_one(folder: Path) -> None:
    """Own. The lines of seal.key in another order, a retired key alone, or one that nobody retired slipped in.

    Powers: knows the passphrase, wants organs sealed or opened with a key it has stolen. Control: the honest order.
    """
    old = load_public_identity(folder).seal
    rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    plain = plain_of(folder, "seal.key")
    blocks = plain.decode().splitlines(keepends=True)
    current, retired = "".join(blocks[:3]), "".join(blocks[3:])
    stranger = identity_text(os.urandom(32)) + "\n"
    for text in (retired + current, retired, current + stranger, stranger + current, current + current, ""):
        put(folder, "seal.key", text.encode())
        with pytest.raises(KeyMismatch):
            load_opener(folder, passphrase=PASSPHRASE)
    put(folder, "seal.key", (current + retired).encode())
    opener = load_opener(folder, passphrase=PASSPHRASE)
    assert opener.recipient == load_public_identity(folder).seal != old
    assert opener.fingerprints == {key_fingerprint(recipient_key(seal)) for seal in (old, opener.recipient)}


def test_a_sealing_key_that_was_destroyed_opens_nothing_any_more(folder: Path, tmp_path: Path) -> None:
    """Own. Recorded organs are tried with what the folder holds after its old sealing key was destroyed.

    Powers: recorded every sealed organ, then takes the folder and learns the passphrase. Control: before the key was
    destroyed, and with a backup of it, they open.
    """
    recorded = sealed_to(load_public_identity(folder).seal)
    assert len(load_opener(folder, passphrase=PASSPHRASE).unwrap(recorded)) == 16
    shutil.copytree(folder, tmp_path / "backup")
    rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2, keep=timedelta(days=1))
    assert len(load_opener(folder, passphrase=PASSPHRASE).unwrap(recorded)) == 16
    rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2, keep=timedelta(0))
    with pytest.raises(NotForThisKey):
        load_opener(folder, passphrase=PASSPHRASE).unwrap(recorded)
    assert len(load_opener(tmp_path / "backup", passphrase=PASSPHRASE).unwrap(recorded)) == 16


def test_links_planted_beside_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """Own. Links with the names that a rotation uses for its temporary folders, to somebody's valuable folder.

    Powers: writes to the parent folder. Control: the rotation happens all the same, and the valuable folder stays.
    """
    from not_fed import files

    valuable = tmp_path / "valuable"
    valuable.mkdir()
    (valuable / "data").write_text("x")
    ready = files._ready_name(folder)
    for planted in (ready, folder.with_name(".keys.0123456789ab.part")):
        planted.symlink_to(valuable)
    new = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2).new
    assert load_public_identity(folder) == new
    assert (valuable / "data").read_text() == "x"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotAFile):
        patch.setattr(files, "_exchange", lambda *_: False)  # the way that needs the name
        rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    assert load_public_identity(folder) == new
    load_all(folder)
