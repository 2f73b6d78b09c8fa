"""Adversary: another process of this machine, a full disk, a kill -9, a careless person: what happens to outputs.

Powers: puts links, pipes and files where opening and sealing write, fills the disk, swaps folders, kills.
Always: nothing existing is overwritten, nothing is followed, nothing half-written has a name.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from not_fed import files
from not_fed.envelope import seal as sealing
from not_fed.envelope.label import label_path
from not_fed.envelope.open import passport_path
from not_fed.errors import NotFedError
from not_fed.files import NotAFile, OutputExists
from tests.support.attacks import afterwards, assert_not_sealed, assert_opens, assert_seals, seal_again
from tests.support.trust import Forger, Parcel, assert_refused, listing


@pytest.mark.parametrize("which", ["organ", "passport"])
def test_nothing_that_exists_is_overwritten(parcel: Parcel, which: str) -> None:
    """A77. A file, a link to a file, a dangling link and a folder lie where the output should go.

    Powers: puts anything into the output folder. Control: with the name free again, the organ is written.
    """
    out = parcel.folder / "opened.organ"
    target = out if which == "organ" else passport_path(out)
    other = parcel.folder / "precious"
    other.write_bytes(b"precious")
    for make in (
        lambda: target.write_bytes(b"mine"),
        lambda: target.symlink_to(other),
        lambda: target.symlink_to(parcel.folder / "nowhere"),
        target.mkdir,
    ):
        make()
        assert_refused(parcel, OutputExists)
        target.rmdir() if target.is_dir() and not target.is_symlink() else target.unlink()
    assert other.read_bytes() == b"precious"
    assert parcel.open().organ.read_bytes() == parcel.organ


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a\0b", "x" * 300, "missing/folder/x", "knee.sealed/x", "../nowhere/x", "心" * 86],
    ids=["empty", "dot", "dots", "nul", "long", "no-folder", "file-as-folder", "climbing", "long-in-bytes"],
)
def test_impossible_output_names_are_refused(parcel: Parcel, name: str) -> None:
    """A76. The output's name is empty, a dot, holds NUL, is too long, or lies in a folder that does not exist.

    Powers: names the output, as a script with a bad variable would. Control: a possible name is written.
    """
    assert_refused(parcel, (NotAFile, OutputExists), out=parcel.folder / name)
    assert_opens(parcel)


@pytest.mark.parametrize("name", ["-rf", "--", "two\nlines", "ümläut 心", "a" * 200, "$(id)", "\x1b[2J", "a;b&c|d"])
def test_strange_but_possible_output_names_work(parcel: Parcel, name: str) -> None:
    """A84. The output's name starts with a dash, has a line feed or what a shell or terminal would act upon.

    Powers: names the output. Control, which is the point: it is written under exactly this name, and nothing else is.
    """
    before = set(listing(parcel.folder))
    assert parcel.open(out=parcel.folder / name).organ.read_bytes() == parcel.organ
    assert set(listing(parcel.folder)) - before == {name, f"{name}.passport"}


def test_outputs_are_private_whatever_the_umask(parcel: Parcel) -> None:
    """A78. The umask is 000, so that a careless program would leave organ and passport readable by everybody.

    Powers: another user of the machine. Control: the outputs are written, and readable by their owner.
    """
    before = os.umask(0)
    try:
        parcel.open()
        seal_again(parcel)
    finally:
        os.umask(before)
    for path in (
        parcel.folder / "opened.organ",
        passport_path(parcel.folder / "opened.organ"),
        parcel.path,
        label_path(parcel.path),
        parcel.folder / "again.sealed",
        label_path(parcel.folder / "again.sealed"),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (parcel.folder / "opened.organ").read_bytes() == parcel.organ


def test_an_output_is_private_from_its_first_byte(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch, no_nameless_files: None
) -> None:
    """Own. Another user watches for the temporary file and opens it before its mode is set.

    Powers: another user of the machine, umask 000. Control: the organ is written.
    """
    modes: list[int] = []

    def look() -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in parcel.folder.glob(".*.part"))

    before = os.umask(0)
    try:
        with afterwards(monkeypatch, files, "_open_part", look):
            assert_opens(parcel)
    finally:
        os.umask(before)
    assert modes
    assert set(modes) == {0o600}


@contextmanager
def _as_nobody_special() -> Iterator[None]:
    """Root may write everywhere: as another user for a while, where one is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_refused(parcel: Parcel) -> None:
    """Own. The output folder may be read and not written; or it is one of the kernel's, in which nobody makes files.

    Powers: sets the mode of the output folder. Control: when it may be written again, the organ is.
    """
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        copy = Path(name) / "knee.sealed"
        copy.write_bytes(parcel.path.read_bytes())
        copy.chmod(0o644)
        (Path(name) / "out").mkdir()
        (Path(name) / "out").chmod(0o555)
        path, parcel.path = parcel.path, copy
        with _as_nobody_special(), pytest.raises(NotAFile):
            parcel.open(out=Path(name) / "out" / "x.organ")
        assert listing(Path(name) / "out") == {}
        (Path(name) / "out").chmod(0o755)
        assert parcel.open(out=Path(name) / "out" / "x.organ").organ.read_bytes() == parcel.organ
        parcel.path = path
    for folder in ("/proc", "/proc/self", "/sys", "/dev/null", "/dev/fd"):
        assert_refused(parcel, (NotAFile, OutputExists), out=Path(folder) / "x.organ")


def test_the_output_folder_cannot_be_swapped_meanwhile(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A80. The folder is renamed and a link put in its place after the first check: the output stays in the real one.

    Powers: renames folders while an organ is written. Control: the organ is whole, in the folder that was named.
    """
    real, trap = parcel.folder / "out", parcel.folder / "trap"
    real.mkdir()
    trap.mkdir()
    publish = files._publish

    def swap(*arguments: object, **more: object) -> None:
        if not (parcel.folder / "moved").exists():
            real.rename(parcel.folder / "moved")
            real.symlink_to(trap)
        publish(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_publish", swap)
    parcel.open(out=real / "x.organ")
    assert (parcel.folder / "moved" / "x.organ").read_bytes() == parcel.organ
    assert "x.organ" not in listing(trap)


def test_an_output_that_appears_meanwhile_leaves_no_label(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A77. Somebody takes the name while the organ is being sealed: their file stays, and no label lies beside it.

    Powers: writes into the output folder at the worst moment. Control: with the name free again, it is sealed.
    """
    out = parcel.folder / "again.sealed"
    with (
        afterwards(monkeypatch, sealing, "_encrypt", lambda: out.write_bytes(b"theirs")),
        pytest.raises(OutputExists),
    ):
        seal_again(parcel)
    assert out.read_bytes() == b"theirs"
    assert not label_path(out).exists()
    out.unlink()
    assert_seals(parcel)


def test_a_label_that_is_in_the_way_leaves_no_sealed_file(parcel: Parcel) -> None:
    """A77. Somebody's file lies where the label should go: no sealed file without its label, and their file stays.

    Powers: writes into the output folder. Control: with the name free again, it is sealed.
    """
    label = label_path(parcel.folder / "again.sealed")
    for make in (lambda: label.write_bytes(b"mine"), lambda: label.symlink_to(parcel.path), label.mkdir):
        make()
        assert_not_sealed(parcel, OutputExists)
        label.rmdir() if label.is_dir() and not label.is_symlink() else label.unlink()
    assert_seals(parcel)


def test_no_output_is_also_an_input(parcel: Parcel) -> None:
    """Own. The output is the sealed file, the organ, or a name whose passport or label would be one of them.

    Powers: names outputs, as a script with two equal variables would. Control: with names of their own all is well.
    """
    whole = parcel.path.read_bytes()
    assert_refused(parcel, OutputExists, out=parcel.path)
    parcel.path = parcel.path.rename(parcel.folder / "x.passport")
    assert_refused(parcel, OutputExists, out=parcel.folder / "x")
    assert_not_sealed(parcel, OutputExists, out=parcel.organ_path)
    parcel.organ_path = parcel.organ_path.rename(parcel.folder / "y.label")
    assert_not_sealed(parcel, OutputExists, out=parcel.folder / "y")
    assert parcel.organ_path.read_bytes() == parcel.organ
    assert parcel.path.read_bytes() == whole
    assert_opens(parcel)
    assert_seals(parcel)


def test_too_few_descriptors_are_a_refusal(parcel: Parcel) -> None:
    """Own. The process may open only a few more files: each number from none to plenty is tried.

    Powers: exhausts descriptors, or sets a low limit. Control: with enough of them the organ is written.
    """
    assert_opens(parcel)  # modules that load late are loaded
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    outcomes = set()
    for more in range(12):
        out = parcel.folder / f"{more}.organ"
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, before[1]))
        try:
            opened = parcel.open(out=out)
        except NotFedError as error:
            outcomes.add(error.code)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert not [name for name in listing(parcel.folder) if name.startswith((f"{more}.", "."))]
        else:
            outcomes.add("opened")
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert opened.organ.read_bytes() == parcel.organ
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {"not-a-file", "opened"} <= outcomes


def test_a_passport_is_never_left_without_its_organ_by_a_refusal(forger: Forger, parcel: Parcel) -> None:
    """Own. The last check fails, after the passport was written: the organ's name is taken in that very moment.

    Powers: writes into the output folder at the worst moment. Control: with the name free again, both are written.
    """
    out = parcel.folder / "opened.organ"
    write: Callable[..., None] = files.write_atomic

    def then(*arguments: object, **more: object) -> None:
        write(*arguments, **more)
        out.write_bytes(b"theirs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_atomic", then)
        with pytest.raises(OutputExists):
            parcel.open()
    assert out.read_bytes() == b"theirs"
    assert not passport_path(out).exists()
    out.unlink()
    assert_opens(parcel)
