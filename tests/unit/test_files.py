"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed import files
from not_fed.files import FileTooLarge, NotAFile, OutputExists


@pytest.fixture(params=["nameless", "part"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_TMPFILE, and as on a file system without it."""
    if request.param == "part":
        monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: None)
    return str(request.param)


def test_a_file_appears_whole_with_its_mode(tmp_path: Path, way: str) -> None:
    old = os.umask(0)
    try:
        with files.new_file(tmp_path / "x") as file:
            file.write(b"half")
            file.flush()
            assert not (tmp_path / "x").exists()
            assert list(tmp_path.iterdir()) == [] or way == "part"
            file.write(b" whole")
        files.write_atomic(tmp_path / "y", b"z", mode=0o644)
    finally:
        os.umask(old)
    assert (tmp_path / "x").read_bytes() == b"half whole"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_when_the_block_raises_nothing_appears(tmp_path: Path, way: str) -> None:
    with pytest.raises(ZeroDivisionError), files.new_file(tmp_path / "x") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_even_when_it_appears_meanwhile(tmp_path: Path, way: str) -> None:
    with pytest.raises(OutputExists), files.new_file(tmp_path / "x") as file:
        file.write(b"mine")
        (tmp_path / "x").write_bytes(b"theirs")
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1
    files.write_atomic(tmp_path / "x", b"new", overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_dangling_link_is_something_that_exists(tmp_path: Path, way: str) -> None:
    (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(OutputExists):
        files.write_atomic(tmp_path / "x", b"")
    files.write_atomic(tmp_path / "x", b"new", overwrite=True)  # replaces the link, not its target
    assert not (tmp_path / "x").is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [".", "..", "a\0b", "x" * 256, "no/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_impossible_names_are_typed_refusals(tmp_path: Path, name: str, overwrite: bool) -> None:
    with pytest.raises((NotAFile, OutputExists)):
        files.write_atomic(tmp_path / name, b"", overwrite=overwrite)
    with pytest.raises((NotAFile, OutputExists)), files.new_folder(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 255, "心" * 85, "🜚" * 63, "-rf", "a\nb"])
def test_every_possible_name_is_possible(tmp_path: Path, way: str, name: str) -> None:
    """The temporary name must not be longer than the real one may be."""
    files.write_atomic(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"
    with files.new_folder(tmp_path / f"{name[:-1]}d") as part:
        (part / "y").write_bytes(b"y")
    assert (tmp_path / f"{name[:-1]}d" / "y").exists()


def test_reading_never_follows_blocks_or_overruns(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder", "missing", "nul\0", "x" * 300):
        with pytest.raises(NotAFile):
            files.read_regular(tmp_path / name, max_bytes=10)
    with pytest.raises(FileTooLarge):
        files.read_regular(tmp_path / "real", max_bytes=4)
    assert files.read_regular(tmp_path / "real", max_bytes=5) == b"12345"
    assert files.sha256(tmp_path / "real") == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    opened = files.open_regular

    def grow(path: Path, *, max_bytes: int | None = None) -> object:
        file = opened(path, max_bytes=max_bytes)
        path.write_bytes(b"123456789")
        return file

    monkeypatch.setattr(files, "open_regular", grow)
    with pytest.raises(FileTooLarge):
        files.read_regular(tmp_path / "x", max_bytes=5)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "x") as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_bytes(b"1")
        (part / "link").symlink_to("inner")
        assert not (tmp_path / "x").exists()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "y"):
        raise ZeroDivisionError
    with pytest.raises(OutputExists), files.new_folder(tmp_path / "x"):
        pass
    with pytest.raises(OutputExists), files.new_folder(tmp_path / "z"):
        (tmp_path / "z").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "z"]


def test_a_new_folder_sweeps_what_the_dead_left_under_any_name(tmp_path: Path) -> None:
    (dead := tmp_path / ".model.0123456789ab.part" / "not-fed").mkdir(parents=True)
    (dead / "organ").write_bytes(b"plaintext")
    (tmp_path / ".organ.ba9876543210.part").write_bytes(b"plaintext")
    (tmp_path / ".mine.part").write_bytes(b"not ours")
    with files.new_folder(tmp_path / "living"), files.new_folder(tmp_path / "other") as part:
        assert part.is_dir()
        assert len(list(tmp_path.glob(".*.part"))) == 3, "the parts of the living, and what is not ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "living", "other"]


def test_a_kill_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 while a megabyte is being written: neither the file nor, where the system has nameless files, a part."""
    script = (
        "import sys, time; from pathlib import Path; from not_fed import files\n"
        "with files.new_file(Path(sys.argv[1])) as file:\n"
        "    file.write(bytes(1 << 20)); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [] if hasattr(os, "O_TMPFILE") else not [name for name in left if not name.endswith(".part")]
