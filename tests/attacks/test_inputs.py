"""Adversary: another process of this machine, a synchronised folder, a careless person: what lies where input is read.

Powers: puts links, pipes, devices, folders and huge files where sealing and opening read; changes files meanwhile.
Always: nothing is followed at the name itself, nothing blocks, nothing large is read to learn that it is too large.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

import pytest
from typing_extensions import Buffer

from not_fed import files
from not_fed.envelope import load_import_policy, new_passport, verify_sealed
from not_fed.envelope import seal as sealing
from not_fed.envelope.frame import MAX_SEALED_BYTES
from not_fed.envelope.open import passport_path
from not_fed.envelope.seal import OrganChanged
from not_fed.errors import NotFedError, TrustError
from not_fed.files import FileTooLarge, NotAFile, OutputExists
from not_fed.keys import load_public_identity
from not_fed.reading import ReadFailed, TypedReads
from not_fed.trust.roster import load_roster, pin_roster
from tests.support.attacks import afterwards, assert_not_sealed, assert_opens, assert_seals, seal_again
from tests.support.trust import FEDERATION, NOW, Federation, Parcel, assert_refused, listing, organ_bytes


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may have 107 bytes only
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL: dict[str, Callable[[Path, Path], object]] = {
    "a link to the real file": lambda path, real: path.symlink_to(real),
    "a dangling link": lambda path, real: path.symlink_to(real.with_name("nowhere")),
    "a link to itself": lambda path, real: path.symlink_to(path),
    "a link to /dev/zero": lambda path, real: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, real: os.mkfifo(path),
    "a socket": lambda path, real: _socket(path),
    "a folder": lambda path, real: path.mkdir(),
    "nothing": lambda path, real: None,
}
special = pytest.mark.parametrize("kind", SPECIAL)


@contextmanager
def in_place_of(path: Path, kind: str) -> Iterator[None]:
    """While the block runs, that kind of thing lies at `path`; then the real file does again."""
    real = path.rename(path.with_name("real file"))
    SPECIAL[kind](path, real)
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        real.rename(path)


@special
def test_a_sealed_file_is_a_plain_file(parcel: Parcel, kind: str) -> None:
    """A75. A link, a pipe, a socket, a folder or nothing at all where the sealed file should be.

    Powers: puts anything into the folder. Control: the file itself opens and verifies.
    """
    roster, hub = parcel.federation.roster, parcel.federation.hub.opener
    with in_place_of(parcel.path, kind):
        assert_refused(parcel, NotAFile)
        with pytest.raises(NotAFile):
            verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label, opener=hub)
    assert_opens(parcel)


@special
def test_an_organ_to_seal_is_a_plain_file(parcel: Parcel, kind: str) -> None:
    """A75. A link, a pipe, a socket, a folder or nothing at all where the organ to be sealed should be.

    Powers: puts anything into the folder. Control: the organ itself is sealed and gets a passport.
    """
    with in_place_of(parcel.organ_path, kind):
        assert_not_sealed(parcel, NotAFile)
        with pytest.raises(NotAFile):
            new_passport(parcel.organ_path, author="clinic", federation=FEDERATION, round_number=0, now=NOW)
    assert_seals(parcel)


@special
def test_small_inputs_are_plain_files(parcel: Parcel, tmp_path: Path, kind: str) -> None:
    """Own. A link, a pipe, a socket, a folder or nothing in place of an identity, an import policy or any small file.

    Powers: puts anything into the folder. Control: a plain file is read.
    """
    path = tmp_path / "policy.toml"
    path.write_text("max_epsilon = 8.0\n")
    with in_place_of(path, kind):
        for read in (load_import_policy, lambda path: files.read_regular(path, max_bytes=1 << 20), files.sha256):
            with pytest.raises(NotFedError) as caught:
                read(path)
            assert caught.value.code == "not-a-file"
        if kind != "a folder":  # a key folder is another way to name an identity
            with pytest.raises(NotAFile):
                load_public_identity(path)
    assert load_import_policy(path).max_epsilon == 8.0


@special
def test_a_rosters_files_are_plain_files(own_federation: Federation, tmp_path: Path, kind: str) -> None:
    """Own. A link, a pipe, a socket, a folder or nothing in place of what a machine trusts, or of a roster's own files.

    Powers: puts anything into the roster folder, or onto the stick with the roster. Control: plain files are taken.
    """
    folder, digest = own_federation.folder, own_federation.root_sha256
    with in_place_of(folder / "trusted" / "state.json", kind), pytest.raises(TrustError):
        load_roster(folder, now=NOW)
    assert load_roster(folder, now=NOW).federation == FEDERATION
    repository = folder / "repository"
    paths = [repository / "metadata" / "timestamp.json", *(repository / "targets").glob("*.roster.json")]
    assert len(paths) == 2
    for path in paths:
        with in_place_of(path, kind), pytest.raises(TrustError):
            pin_roster(folder, root_sha256=digest, out=tmp_path / "site", now=NOW)
        assert not (tmp_path / "site").exists()
    pin_roster(folder, root_sha256=digest, out=tmp_path / "site", now=NOW)
    assert load_roster(tmp_path / "site", now=NOW).federation == FEDERATION


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/full", "/dev/stdin", "/proc/self/mem"])
def test_devices_are_no_input(parcel: Parcel, device: str) -> None:
    """Own. A device or a process's memory is named as sealed file or organ: endless, empty, or not one's own.

    Powers: names any path as an input. Control: a plain file opens.
    """
    path, parcel.path = parcel.path, Path(device)
    assert_refused(parcel, (NotAFile, ReadFailed))
    with pytest.raises(NotFedError):
        new_passport(Path(device), author="clinic", federation=FEDERATION, round_number=0, now=NOW)
    parcel.path = path
    assert_opens(parcel)


@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/self/environ", "/proc/cpuinfo", "/proc/self/maps"])
def test_files_that_claim_to_be_empty_are_read_within_their_bounds(parcel: Parcel, name: str) -> None:
    """Own. Files of /proc say that they hold nothing, and hold something: secrets, or more the longer one reads.

    Powers: names any path as an input. Control: a plain file opens.
    """
    path, parcel.path = parcel.path, Path(name)
    error = assert_refused(parcel, TrustError)
    assert "PATH=" not in str(error.as_json())
    with pytest.raises(FileTooLarge):
        files.read_regular(Path(name), max_bytes=8)
    parcel.path = path
    assert_opens(parcel)


@pytest.mark.parametrize("size", [MAX_SEALED_BYTES + 1, 1 << 43], ids=["64 GiB and a byte", "8 TiB"])
def test_a_file_beyond_every_bound_is_refused_unread(parcel: Parcel, size: int) -> None:
    """Own. A sparse file of 64 GiB and a byte, or of 8 TiB: no disk holds it, and hashing it would take hours.

    Powers: puts any file in the place of the sealed one. Control: cut to its true size again, the file opens.
    """
    true_size = parcel.path.stat().st_size
    os.truncate(parcel.path, size)
    started = time.process_time()
    assert_refused(parcel, FileTooLarge, label=parcel.sealed.label)
    with pytest.raises(FileTooLarge):
        verify_sealed(parcel.path, roster=parcel.federation.roster, now=NOW, label=parcel.sealed.label)
    assert time.process_time() - started < 2
    os.truncate(parcel.path, true_size)
    assert_opens(parcel)


def test_a_sparse_file_below_the_bound_costs_no_more_than_its_header(parcel: Parcel) -> None:
    """Own. A sparse file of 60 GiB whose header is good: its length alone contradicts the waybill.

    Powers: appends any number of zeros to a sealed file, without using disk. Control: cut again it opens.
    """
    true_size = parcel.path.stat().st_size
    os.truncate(parcel.path, 60 << 30)
    started = time.process_time()
    assert_refused(parcel, TrustError)
    assert time.process_time() - started < 2
    os.truncate(parcel.path, true_size)
    assert_opens(parcel)


def test_paths_that_cannot_be_are_refused(parcel: Parcel) -> None:
    """Own. Names with NUL, of ten thousand letters, of bytes that are no UTF-8, through a file as if it were a folder.

    Powers: names any path as an input. Control: the true path opens.
    """
    path = parcel.path
    for name in ("a\0b", "x" * 300, "/".join(["x" * 100] * 100), "\udcff\udcfe", "knee.sealed/x", "..", ""):
        parcel.path = parcel.folder / name
        assert_refused(parcel, NotAFile)
    parcel.path = path
    assert_opens(parcel)


def test_a_linked_parent_folder_is_the_users_own_choice(parcel: Parcel) -> None:
    """Own. The folder that holds the sealed file is reached through a link, as synchronised and mounted folders are.

    Powers: none beyond the user's own. Control, which is the point: it opens; a link at the name itself does not.
    """
    (parcel.folder / "linked").symlink_to(parcel.folder)
    path, parcel.path = parcel.path, parcel.folder / "linked" / parcel.path.name
    assert parcel.open(out=parcel.folder / "linked" / "x.organ").organ.read_bytes() == parcel.organ
    parcel.path = path.with_name("a link")
    parcel.path.symlink_to(path.name)
    assert_refused(parcel, NotAFile, out=parcel.folder / "y.organ")


def test_an_organ_cannot_change_while_it_is_sealed(big: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A82. The organ is overwritten or cut after its header was checked and before it was read.

    Powers: writes to the organ while it is being sealed. Control: an organ that nobody writes to is sealed.
    """
    for change in (big.organ[:-1] + b"\x7f", big.organ[:-8], b""):
        before = set(listing(big.folder))
        with (
            afterwards(monkeypatch, sealing, "_check_organ", partial(big.organ_path.write_bytes, change)),
            pytest.raises(OrganChanged),
        ):
            seal_again(big)
        assert set(listing(big.folder)) == before
        assert_not_sealed(big, NotFedError)  # before it starts: not the organ of this passport
        big.organ_path.write_bytes(big.organ)
    assert_seals(big)


def test_an_organ_that_is_exchanged_while_it_is_sealed_is_not_the_one_that_is_sealed(
    big: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A82. Another organ takes the organ's name after it was opened: what was checked is what is sealed.

    Powers: renames files in the folder while one is being sealed. Control: what comes out is the organ of the passport.
    """
    other = big.folder / "other"

    def exchange() -> None:
        other.write_bytes(organ_bytes(floats=40_000, value=0.25))
        other.replace(big.organ_path)

    with afterwards(monkeypatch, sealing, "_check_organ", exchange):
        sealed = seal_again(big)
    big.path = sealed.path
    assert sealed.organ_sha256 == big.passport.organ_sha256
    assert_opens(big, label=sealed.label)


def test_a_passport_that_grows_or_lies_in_the_way_is_no_input(parcel: Parcel) -> None:
    """Own. A file of another passport, of 5 MB, or a link lies where the passport is to be written.

    Powers: puts anything into the output folder. Control: this organ's own passport, from a cut-off attempt, is kept.
    """
    out = parcel.folder / "opened.organ"
    for make in (
        lambda path: path.write_bytes(b"{}"), lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 5 << 20),
        lambda path: path.symlink_to(parcel.path), lambda path: os.mkfifo(path),
    ):  # fmt: skip
        make(passport_path(out))
        assert_refused(parcel, (OutputExists, FileTooLarge))
        passport_path(out).unlink()
    passport_path(out).write_bytes(parcel.passport_line + b"\n")
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_a_disk_that_fails_in_the_middle_is_a_refusal(big: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. Reading fails in the middle of the sealed file, or of the organ to be sealed: a dying stick, a share gone.

    Powers: pulls the stick. Control: once the disk reads again, the file opens and the organ is sealed.
    """
    calls = iter(range(1_000_000))
    real = FileIO.readinto

    class Failing(TypedReads):
        def readinto(self, buffer: Buffer, /) -> int:
            if next(calls) % 2:
                raise self.failed(OSError(errno.EIO, "input/output error"))
            return real(self, buffer) or 0

    with monkeypatch.context() as patch:
        patch.setattr(files, "TypedReads", Failing)
        assert_refused(big, ReadFailed)
        assert_not_sealed(big, ReadFailed)
    assert_opens(big)
    assert_seals(big)
