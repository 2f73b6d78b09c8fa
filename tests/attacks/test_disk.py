"""Adversary: a full disk, a file system that lacks what others have, a kill -9: what is left of an output.

Powers: fills the disk, chooses the file system (a USB stick), kills at the worst moment, plants files meanwhile.
Always: whole or not at all under the final name; what a dead writer left is swept by the next, and nothing else is.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed import files
from not_fed.errors import NotFedError
from not_fed.files import NoSpace, NotAFile, OutputExists
from tests.support.attacks import assert_not_sealed, assert_opens, assert_seals
from tests.support.trust import Parcel, assert_refused, listing

ROOT = Path(__file__).parents[2]


def _no_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


def test_a_full_disk_leaves_nothing(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A79. The disk is full when the first byte is written: opening and sealing are refused, nothing is left.

    Powers: fills the disk. Control: with room again the organ is written and sealed.
    """
    full = os.open("/dev/full", os.O_RDWR)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(files, "_open_nameless", lambda folder, mode: os.dup(full))  # every write says ENOSPC
            assert_refused(parcel, NoSpace)
            assert_not_sealed(parcel, NoSpace)
    finally:
        os.close(full)
    assert_opens(parcel)
    assert_seals(parcel)


@pytest.mark.parametrize("way", ["nameless", "part"])
def test_a_disk_that_fills_in_the_middle_leaves_nothing(big: Parcel, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A79. The disk takes half of the file and no more, with nameless files and without.

    Powers: fills the disk, or sets a limit on file sizes, while a file is written. Control: without the limit it opens.
    """
    if way == "part":
        monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: None)
    assert_opens(big)  # modules that load late are loaded: the limit is for our files
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert_refused(big, NoSpace)
        assert_not_sealed(big, NoSpace)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_opens(big)
    assert_seals(big)


def test_too_little_room_is_known_before_anything_is_written(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A79. The disk says beforehand that the organ will not fit.

    Powers: fills the disk. Control: with room for it the organ is written.
    """
    usage = shutil.disk_usage(parcel.folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert_refused(parcel, NoSpace)
    assert_opens(parcel)


KILLED = """
import sys, time
from not_fed import files
from tests.support.trust import *

folder, stop, publish = Path(sys.argv[1]), sys.argv[4], files._publish

def ready(descriptor, part, parent, path, **more):
    if path.name == stop:
        print("ready", flush=True)
        time.sleep(60)
    publish(descriptor, part, parent, path, **more)

(folder / "o").mkdir()
parcel = Parcel(folder, Federation.make(folder / "roster"), organ=organ_bytes(floats=40_000))
if sys.argv[2] == "part":
    files._open_nameless = lambda folder, mode: None
files._publish = ready
if sys.argv[3] == "open":
    parcel.open(out=folder / "o" / "x")
else:
    from tests.support.attacks import seal_again
    seal_again(parcel, out=folder / "o" / "x")
"""


@pytest.mark.parametrize(
    ("action", "last"), [("open", "x.passport"), ("open", "x"), ("seal", "x.label"), ("seal", "x")]
)
@pytest.mark.parametrize("way", ["nameless", "part"])
def test_a_kill_leaves_no_output_and_the_next_writer_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, action: str, last: str
) -> None:
    """A79. kill -9 in the last moment before a file gets its name, with nameless files and without.

    Powers: kills the process, pulls the plug. Control: the next writer there finds no obstacle and sweeps.
    """
    words = [sys.executable, "-c", KILLED, str(tmp_path), way, action, last]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    paper = {"open": "x.passport", "seal": "x.label"}[action]
    left = list((tmp_path / "o").iterdir())
    assert {path.name for path in left if not path.name.endswith(".part")} == ({paper} if last == "x" else set())
    assert sum(path.name.endswith(".part") for path in left) == (way == "part") * (1 if last == "x" else 2)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in left)
    monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: None)
    for name in ("x", paper):
        files.write_atomic(tmp_path / "o" / name, b"whole", overwrite=name == paper)
    assert listing(tmp_path / "o") == {"x": 5, paper: 5}


def test_sweeping_touches_nothing_but_parts_of_the_dead(parcel: Parcel, no_nameless_files: None) -> None:
    """Own. Links, hard links, folders, pipes and other people's files are given the names of stale parts.

    Powers: puts anything into the output folder, hoping that sweeping follows it. Control: the organ is written.
    """
    precious = parcel.folder / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"precious")
    part = ".opened.organ.{:012x}.part".format
    (parcel.folder / part(1)).symlink_to(precious)
    (parcel.folder / part(2)).symlink_to(precious / "file")
    os.link(precious / "file", parcel.folder / part(3))
    (parcel.folder / part(4)).mkdir()
    (parcel.folder / part(4) / "link").symlink_to(precious)
    os.mkfifo(parcel.folder / part(5))
    others = [".other.organ.0123456789AB.part", "..0123456789ab.part", ".opened.organ.part", "x.part",
              ".opened.organ.0123456789ab.part.txt"]  # fmt: skip
    for name in others:
        (parcel.folder / name).write_bytes(b"theirs")
    assert parcel.open().organ.read_bytes() == parcel.organ
    assert (precious / "file").read_bytes() == b"precious"
    assert all((parcel.folder / name).read_bytes() == b"theirs" for name in others)


def test_a_part_of_a_living_writer_is_not_swept(tmp_path: Path, no_nameless_files: None) -> None:
    """Own. Two writers of one name at once, on a file system without nameless files: neither sweeps the other's part.

    Powers: starts a second command at the same moment. Control: the first to finish wins, the other is refused.
    """
    out = tmp_path / "x"
    with pytest.raises(OutputExists), files.new_file(out) as first:
        first.write(b"first")
        with files.new_file(out) as second:
            second.write(b"second")
        assert out.read_bytes() == b"second"
    assert out.read_bytes() == b"second"
    assert listing(tmp_path) == {"x": 6}


def test_without_nameless_files_the_part_file_is_swept(parcel: Parcel, no_nameless_files: None) -> None:
    """A81. A file system without O_TMPFILE: a refused file leaves no part behind.

    Powers: chooses the file system, a USB stick with FAT. Control: the organ is written whole.
    """
    assert parcel.open(out=parcel.folder / "one.organ").organ.read_bytes() == parcel.organ
    whole = parcel.path.read_bytes()
    parcel.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_refused(parcel, NotFedError)
    parcel.path.write_bytes(whole)
    assert_opens(parcel)
    assert not [name for name in listing(parcel.folder) if name.endswith(".part")]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK], ids=errno.errorcode.get)
def test_without_hard_links_nothing_is_overwritten(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch, no_nameless_files: None, number: int
) -> None:
    """A81. A file system without O_TMPFILE and hard links: still whole or nothing, and never an overwrite.

    Powers: chooses the file system, a USB stick with FAT. Control: the organ is written, and sealed.
    """
    _no_links(monkeypatch, number)
    assert parcel.open(out=parcel.folder / "two.organ").organ.read_bytes() == parcel.organ
    assert_refused(parcel, OutputExists, out=parcel.folder / "two.organ")
    assert_seals(parcel)
    with pytest.raises(OutputExists), files.new_file(parcel.folder / "three") as file:
        file.write(b"mine")
        (parcel.folder / "three").write_bytes(b"theirs")
    assert (parcel.folder / "three").read_bytes() == b"theirs"
    assert not [name for name in listing(parcel.folder) if name.endswith(".part")]


def test_nameless_files_that_cannot_get_a_name_are_a_refusal(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. A file system that has nameless files and refuses to name them: the refusal is typed, and nothing is left.

    Powers: a sandbox that forbids linking. Control: where linking is allowed, the organ is written.
    """
    with monkeypatch.context() as patch:
        _no_links(patch, errno.EPERM)
        assert_refused(parcel, NotAFile)
    assert_opens(parcel)
