"""Rotation: new keys, an old folder's word for them, old organs that still open; and kill -9 at every step of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from datetime import timedelta
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pyrage
import pytest

from not_fed import files
from not_fed.age import HybridIdentity, NotForThisKey, encrypt, read_header
from not_fed.errors import NotFedError
from not_fed.files import FolderBusy, NotAFile
from not_fed.keys import (
    KeyExposed,
    KeyMismatch,
    PublicIdentity,
    Secret,
    create_keys,
    load_log_signer,
    load_opener,
    load_public_identity,
    load_signer,
    load_steward,
    read_succession,
    rotate_keys,
)
from not_fed.keys.create import TooManyRetired
from tests.support.trust import NOW

PASSPHRASE = Secret(b"correct horse battery staple")
DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of a clinic that is steward and keeps the log."""
    create_keys(tmp_path / "keys", name="clinic", passphrase=PASSPHRASE, work_factor=2, steward=True, log=True)
    return tmp_path / "keys"


def rotate(folder: Path, *, days: int = 0, keep: int = 90) -> PublicIdentity:
    """Once more, so many days after NOW."""
    return rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2, now=NOW + days * DAY, keep=keep * DAY).new


def opens(folder: Path, recipient: str) -> bool:
    """Whether this folder opens what was sealed to `recipient`."""
    header = read_header(BytesIO(encrypt(b"organ", recipients=[recipient])))
    try:
        load_opener(folder, passphrase=PASSPHRASE).unwrap(header)
    except NotForThisKey:
        return False
    return True


def test_all_site_keys_are_new_and_the_others_stay(folder: Path) -> None:
    old, steward = load_public_identity(folder), load_steward(folder, passphrase=PASSPHRASE)
    log, old_signer = load_log_signer(folder, passphrase=PASSPHRASE), load_signer(folder, passphrase=PASSPHRASE)
    (folder / "note.txt").write_text("not ours")
    new = rotate(folder)
    assert load_public_identity(folder) == new
    assert not {old.ed25519, old.ml_dsa_65, old.seal} & {new.ed25519, new.ml_dsa_65, new.seal}
    assert (new.name, new.log, new.created) == (old.name, old.log, NOW)
    assert load_signer(folder, passphrase=PASSPHRASE).public == new.signing != old_signer.public
    assert load_steward(folder, passphrase=PASSPHRASE).public == steward.public
    assert load_log_signer(folder, passphrase=PASSPHRASE).public == log.public
    assert (folder / "note.txt").read_text() == "not ours"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("seal.key", "sign.key", "roster.key", "log.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert [path.name for path in folder.parent.iterdir()] == ["keys"]


def test_the_old_keys_sign_for_the_new_ones(folder: Path) -> None:
    old = load_public_identity(folder)
    new = rotate(folder)
    line = (folder / "succession.json").read_bytes().removesuffix(b"\n")
    succession = read_succession(line, old=old.signing)
    succession.check(name="clinic", old=old.fingerprint, new=new)
    assert succession.issued == NOW
    assert load_public_identity(folder / "retired" / "1") == old


def test_a_chain_of_rotations_can_be_followed_from_any_link(folder: Path) -> None:
    identities = [load_public_identity(folder), *(rotate(folder, days=day) for day in range(3))]
    for number, (old, new) in enumerate(pairwise(identities), start=1):
        place = folder / "retired" / str(number)
        assert load_public_identity(place) == old
        line = (place / "succession.json").read_bytes().removesuffix(b"\n")
        read_succession(line, old=old.signing).check(name="clinic", old=old.fingerprint, new=new)
    assert (folder / "succession.json").read_bytes() == (folder / "retired" / "3" / "succession.json").read_bytes()


def test_old_organs_open_for_as_long_as_was_said(folder: Path) -> None:
    first = load_public_identity(folder).seal
    second = rotate(folder, days=0).seal
    assert [opens(folder, seal) for seal in (first, second)] == [True, True]
    third = rotate(folder, days=89).seal
    assert [opens(folder, seal) for seal in (first, second, third)] == [True, True, True]
    fourth = rotate(folder, days=90).seal  # the first was retired 90 days ago, the second one day ago
    assert [opens(folder, seal) for seal in (first, second, third, fourth)] == [False, True, True, True]
    fifth = rotate(folder, days=90, keep=0).seal
    assert [opens(folder, seal) for seal in (third, fourth, fifth)] == [False, False, True]


def test_a_rotation_says_what_it_kept_and_destroyed(folder: Path) -> None:
    rotate(folder, days=0)
    rotate(folder, days=10)
    done = rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2, now=NOW + 95 * DAY, keep=90 * DAY)
    assert done.kept == (NOW + 95 * DAY, NOW + 10 * DAY)
    assert done.destroyed == 1


def test_retired_keys_cost_no_second_scrypt_and_age_reads_them(folder: Path) -> None:
    """All in seal.key, the current one first; another implementation finds every one of them."""
    seals = [load_public_identity(folder).seal, rotate(folder).seal, rotate(folder).seal]
    text = pyrage.passphrase.decrypt((folder / "seal.key").read_bytes(), PASSPHRASE.reveal().decode()).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [HybridIdentity.from_text(line).recipient for line in lines] == seals[::-1]
    assert text.count("# retired: ") == 2
    opener = load_opener(folder, passphrase=PASSPHRASE)
    assert [opener.recipient, *(old.recipient for old in opener.retired)] == seals[::-1]
    assert len(opener.fingerprints) == 3


def test_there_is_an_end_to_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("not_fed.keys.create.MAX_RETIRED", 2)
    rotate(folder)
    last = rotate(folder)
    with pytest.raises(TooManyRetired):
        rotate(folder)
    assert load_public_identity(folder) == last


def test_nothing_is_rotated_with_a_wrong_passphrase_or_in_an_exposed_folder(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(NotFedError):
        rotate_keys(folder, passphrase=Secret(b"wrong"), work_factor=2)
    folder.chmod(0o755)
    with pytest.raises(KeyExposed):
        rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    folder.chmod(0o700)
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(KeyExposed):
        rotate_keys(folder.parent / "link", passphrase=PASSPHRASE, work_factor=2)
    with pytest.raises(NotAFile):
        rotate_keys(folder.parent / "nowhere", passphrase=PASSPHRASE, work_factor=2)
    os.mkfifo(folder / "pipe")
    with pytest.raises(NotAFile):
        rotate_keys(folder, passphrase=PASSPHRASE, work_factor=2)
    (folder / "pipe").unlink()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["keys", "link"]


def test_two_rotations_at_once_are_one(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(FolderBusy):
        rotate(folder)
    os.close(descriptor)
    rotate(folder)  # control


def test_a_folder_that_was_replaced_before_its_lock_was_held_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, copy = fcntl.flock, folder.parent / "copy"
    shutil.copytree(folder, copy)

    def late(descriptor: int, operation: int) -> None:
        if copy.exists():
            shutil.rmtree(folder)
            copy.rename(folder)
        real(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with pytest.raises(FolderBusy):
        rotate(folder)
    rotate(folder)  # control


def test_where_the_kernel_cannot_exchange_folders_three_renames_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    old = load_public_identity(folder).seal
    new = rotate(folder)
    assert load_public_identity(folder) == new
    assert opens(folder, old)
    assert [path.name for path in folder.parent.iterdir()] == ["keys"]


def test_this_machine_does_exchange_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    if sys.platform == "linux":
        assert files._exchange(tmp_path / "one", tmp_path / "two")
        assert (tmp_path / "one" / "name").read_text() == "two"
    with pytest.raises(OSError, match="No such file"):
        files._exchange(tmp_path / "one", tmp_path / "none")


KILLED = textwrap.dedent("""
    import json, os, signal, sys
    from pathlib import Path
    from not_fed import files
    from not_fed.keys import Secret, create_keys, rotate_keys

    mode, places = sys.argv[1], [Path(text) for text in sys.argv[2:]]
    passphrase = Secret(b"correct horse battery staple")
    if mode == "renames":
        files._exchange = lambda *_: False

    def act(folder):
        if mode == "create":
            create_keys(folder, name="clinic", passphrase=passphrase, work_factor=2, steward=True, log=True)
        else:
            rotate_keys(folder, passphrase=passphrase, work_factor=2)

    def child(folder, last):
        steps = 0
        def hook(event, _):
            nonlocal steps
            if event == "open" or event.partition(".")[0] in ("os", "shutil", "ctypes", "fcntl"):
                steps += 1
                if steps == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)  # before every call into the system
        act(folder)
        print(steps, flush=True)
        os._exit(0)

    for place in places:
        last = int(place.parent.name)
        if (pid := os.fork()) == 0:
            child(place, last)
        os.waitpid(pid, 0)
""")


def kill_at_each(mode: str, start: Path | None, work: Path, *, count: int) -> list[Path]:
    """Copies of `start`, each after a kill at another step of what `mode` does; evenly over all its steps."""
    (work / "0").mkdir(parents=True)
    if start:
        shutil.copytree(start, work / "0" / "keys")
    command = [sys.executable, "-c", KILLED, mode]
    steps = int(subprocess.run([*command, work / "0" / "keys"], capture_output=True, text=True, check=True).stdout)
    assert steps > count, "every call into the system is one"
    places = []
    for number in range(count):
        place = work / str(1 + number * steps // count)
        place.mkdir()
        if start:
            shutil.copytree(start, place / "keys")
        places.append(place / "keys")
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=True)
    assert done.stdout == "", "each was killed before its end"
    return places


@pytest.mark.parametrize("mode", ["exchange", "renames"])
def test_a_kill_leaves_the_old_keys_or_the_new_ones(folder: Path, tmp_path: Path, mode: str) -> None:
    old, seen = load_public_identity(folder), set()
    for place in kill_at_each(mode, folder, tmp_path / "work", count=40):
        now = load_public_identity(place)
        signer, opener = load_signer(place, passphrase=PASSPHRASE), load_opener(place, passphrase=PASSPHRASE)
        assert signer.public == now.signing
        assert opener.recipient == now.seal
        assert opens(place, old.seal)
        seen.add(now == old)
        if now != old:
            line = (place / "succession.json").read_bytes().removesuffix(b"\n")
            read_succession(line, old=old.signing).check(name="clinic", old=old.fingerprint, new=now)
        assert load_steward(place, passphrase=PASSPHRASE).name == "clinic"
        again = rotate(place)  # whatever the kill left behind does not stand in the way, and goes
        assert load_public_identity(place) == again
        assert len(list((place / "retired").iterdir())) == 1 + (now != old)
        assert [path.name for path in place.parent.iterdir()] == ["keys"]
    assert seen == {True, False}, "some kills came before the exchange and some after it"


def test_a_kill_leaves_no_keys_or_whole_ones(tmp_path: Path) -> None:
    seen = set()
    for place in kill_at_each("create", None, tmp_path / "work", count=40):
        seen.add(place.exists())
        if place.exists():
            assert load_signer(place, passphrase=PASSPHRASE).public == load_public_identity(place).signing
            assert load_log_signer(place, passphrase=PASSPHRASE).public == load_public_identity(place).log
            load_steward(place, passphrase=PASSPHRASE)
            shutil.rmtree(place)
        create_keys(place, name="clinic", passphrase=PASSPHRASE, work_factor=2)
        assert [path.name for path in place.parent.iterdir()] == ["keys"]
    assert False in seen


LOOP = textwrap.dedent("""
    import sys
    from datetime import timedelta
    from pathlib import Path
    from not_fed.keys import Secret, rotate_keys

    print("ready", flush=True)
    while True:
        rotate_keys(Path(sys.argv[1]), passphrase=Secret(b"correct horse battery staple"), work_factor=2)
""")


def test_kills_at_random_moments_leave_whole_keys(folder: Path) -> None:
    seal = load_public_identity(folder).seal
    for number in range(20):
        with subprocess.Popen([sys.executable, "-c", LOOP, folder], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.003 + os.urandom(1)[0] / 256 * 0.1)
            process.kill()
        now = load_public_identity(folder)
        assert load_signer(folder, passphrase=PASSPHRASE).public == now.signing, number
        assert load_opener(folder, passphrase=PASSPHRASE).recipient == now.seal
        assert opens(folder, seal)
    rotate(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["keys"]


def test_what_is_read_comes_from_one_folder_even_while_it_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that loads its keys during a rotation gets the old ones or a refusal, never a mixture."""
    from not_fed.keys import folder as reading

    real, rotated = reading.read_identity, []

    def rotating(line: bytes, *, where: str) -> PublicIdentity:
        identity = real(line, where=where)
        if not rotated:
            rotated.append(identity)
            rotate(folder)
        return identity

    monkeypatch.setattr(reading, "read_identity", rotating)
    with pytest.raises(NotAFile):  # the old folder is gone by now
        load_signer(folder, passphrase=PASSPHRASE)
    assert load_signer(folder, passphrase=PASSPHRASE).public != rotated[0].signing


def test_a_folder_whose_retired_keys_lack_their_dates_is_refused(folder: Path) -> None:
    from not_fed.age import decrypt_with_passphrase, encrypt_with_passphrase

    rotate(folder)
    plain = decrypt_with_passphrase((folder / "seal.key").read_bytes(), passphrase=PASSPHRASE.reveal())
    for changed in (
        b"\n".join(line for line in plain.split(b"\n") if not line.startswith(b"# retired")),
        plain.replace(b"# retired: 2", b"# retired: x"),
        b"# retired: 2026-11-24T12:00:00Z\n" + plain,
        b"# nothing\n",
    ):
        sealed = encrypt_with_passphrase(changed, passphrase=PASSPHRASE.reveal(), work_factor=2)
        (folder / "seal.key").write_bytes(sealed)
        with pytest.raises(KeyMismatch):
            rotate(folder)


def test_the_command_asks_first_and_says_what_it_did(folder: Path) -> None:
    (folder.parent / "pw").write_bytes(PASSPHRASE.reveal() + b"\n")
    (folder.parent / "pw").chmod(0o600)
    old = load_public_identity(folder)
    command = [sys.executable, "-c", "from not_fed.cli.main import main; main()", "keys", "rotate", "keys",
               "--passphrase-file", "pw"]  # fmt: skip
    refused = subprocess.run(command, cwd=folder.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             check=False)  # fmt: skip
    assert refused.returncode not in (0, 1)
    assert load_public_identity(folder) == old
    for extra, kept in ((), 1), (("--keep-days", "0"), 0):
        old = load_public_identity(folder)
        done = subprocess.run([*command, "--yes", "--json", *extra], cwd=folder.parent, capture_output=True, text=True,
                              check=True)  # fmt: skip
        told = json.loads(done.stdout)
        assert told["schema"] == "not-fed/keys/1"
        assert (told["old_fingerprint"], len(told["kept"])) == (old.fingerprint, kept)
        assert told["fingerprint"] == load_public_identity(folder).fingerprint != old.fingerprint
        assert told["destroyed"] == {"signing": 1, "sealing": 2 * (kept == 0)}
        assert told["send"] == ["keys/identity.json", "keys/succession.json"]
        assert all((folder.parent / path).is_file() for path in told["send"])
