"""TUF over a folder: the stock client of python-tuf decides, this module only feeds it and keeps what it remembers.

R/repository   metadata and targets as TUF lays them out; this is what is handed to others
R/trusted      the pinned root and the newest metadata that this machine has ever accepted

Each check runs on a copy of R/trusted, which replaces the original only after everything held: a broken or hostile
repository changes nothing here. Specification: https://theupdateframework.github.io/specification/latest/
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from not_fed import files
from not_fed.errors import InputError, NotFedError, TrustError

TARGETS = ("roster.json", "recalls.json")
PINNED = "pinned.root.json"
MAX_FILE_BYTES = 5_000_000
MAX_ROOT_BYTES = 512_000
_METADATA_NAME = re.compile(r"(?:[1-9][0-9]{0,8}\.(?:root|snapshot|targets)|timestamp)\.json")
_TARGET_NAME = re.compile(r"[0-9a-f]{64}\.(?:roster|recalls)\.json")
_REMEMBERED = ("targets.json", "snapshot.json", "timestamp.json")
_WHENEVER = datetime.min.replace(tzinfo=UTC)


class RosterExpired(TrustError):
    """The roster is too old to rely on; a newer one may be kept from you."""

    code = "roster-expired"


class RosterRollback(TrustError):
    """An older roster was offered after a newer one."""

    code = "roster-rollback"


class RosterUnsigned(TrustError):
    """The roster is not signed by enough of its stewards, with both kinds of key."""

    code = "roster-unsigned"


class RosterAltered(TrustError):
    """The roster is incomplete, was edited, or was put together from different versions."""

    code = "roster-altered"


class RosterNotPinned(TrustError):
    """This machine does not know yet which roster to trust."""

    code = "roster-not-pinned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What TUF accepted."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    contents: Mapping[str, bytes]

    @property
    def expires_at(self) -> datetime:
        """When the first of the four expires."""
        return min(part.expires for part in (self.root, self.timestamp, self.snapshot, self.targets))


class _FolderFetcher(FetcherInterface):
    """Reads `folder:///metadata/...` and `folder:///targets/...` below one folder; knows no network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        kind, _, name = urlsplit(url).path.lstrip("/").partition("/")
        known = {"metadata": _METADATA_NAME, "targets": _TARGET_NAME}.get(kind)
        if known is None or not known.fullmatch(name):
            raise tuf_errors.DownloadHTTPError("no such file", 404)
        try:
            return iter([files.read_regular(self._folder / kind / name, max_bytes=MAX_FILE_BYTES)])
        except InputError:
            raise tuf_errors.DownloadHTTPError("no such file", 404) from None


def repository_of(source: Path) -> Path:
    """The TUF repository in a roster folder, or `source` itself when it is one; raises NotAFile."""
    for candidate in (source / "repository", source):
        if (candidate / "metadata").is_dir():
            return candidate
    raise files.NotAFile(where=str(source), expected="a roster folder", got="none", hint="create or pin one")


def verify(folder: Path, *, repository: Path, now: datetime, accept_expired: bool = False) -> Verified:
    """Check `repository` against what `folder`/trusted remembers, and remember the outcome.

    Args:
        now: the time against which expiry is judged.
        accept_expired: for the steward who is about to renew it; all other checks stay.
    Raises:
        RosterNotPinned, RosterExpired, RosterRollback, RosterUnsigned, RosterAltered: and then nothing was remembered.
    """
    trusted = folder / "trusted"
    with _locked(trusted), tempfile.TemporaryDirectory(prefix="not-fed-") as scratch:
        stage = Path(scratch)
        pinned = _read_pinned(trusted)
        _copy_memory(trusted, stage)
        try:
            verified = _run(stage, repository, pinned, reference=_WHENEVER if accept_expired else now)
        except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
            raise _translate(error) from None
        _keep_memory(stage, trusted)
    return verified


def copy_repository(source: Path, target: Path) -> None:
    """Copy the files that a roster's repository has, and no others; the timestamp last, so it is never torn."""
    for kind, known in (("targets", _TARGET_NAME), ("metadata", _METADATA_NAME)):
        (target / kind).mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in (source / kind).iterdir() if known.fullmatch(entry.name))
        for name in names:  # "timestamp" sorts after every number
            data = files.read_regular(source / kind / name, max_bytes=MAX_FILE_BYTES)
            _write_if_changed(target / kind / name, data, mode=0o644)


def find_root(repository: Path, *, sha256: str) -> bytes:
    """The root metadata of that digest; raises RosterNotPinned."""
    for path in sorted((repository / "metadata").glob("*.root.json")):
        data = files.read_regular(path, max_bytes=MAX_ROOT_BYTES)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise RosterNotPinned(
        where="roster to pin", expected=f"a root with digest {sha256[:16]}...", got="none of that digest",
        hint="compare the digest with a steward; never pin what the same channel told you",
    )  # fmt: skip


def _run(stage: Path, repository: Path, pinned: bytes, *, reference: datetime) -> Verified:
    updater = Updater(
        metadata_dir=str(stage), metadata_base_url="folder:///metadata/", target_dir=str(stage),
        target_base_url="folder:///targets/", fetcher=_FolderFetcher(repository), bootstrap=pinned,
        config=UpdaterConfig(timestamp_max_length=MAX_ROOT_BYTES),  # each steward adds 7 KB of signatures
    )  # fmt: skip
    known = updater._trusted_set
    known.reference_time = reference  # TUF asks the clock once, here; ours comes from the caller
    updater.refresh()
    contents = {}
    for name in TARGETS:
        info = updater.get_targetinfo(name)
        if info is None:
            raise tuf_errors.RepositoryError("a target is missing")
        contents[name] = Path(updater.download_target(info, str(stage / f"target.{name}"))).read_bytes()
    return Verified(
        root=known.root, timestamp=known.timestamp, snapshot=known.snapshot, targets=known.targets, contents=contents
    )


def _translate(error: Exception) -> NotFedError:
    kinds: tuple[tuple[type[Exception], type[TrustError], str], ...] = (
        (tuf_errors.ExpiredMetadataError, RosterExpired, "metadata past its date"),
        (tuf_errors.BadVersionNumberError, RosterRollback, "a lower or skipped version"),
        (tuf_errors.UnsignedMetadataError, RosterUnsigned, "too few valid signatures"),
    )
    found = next(((kind, got) for tuf_kind, kind, got in kinds if isinstance(error, tuf_kind)), None)
    kind, got = found or (RosterAltered, "files that do not match each other")
    return kind(
        where="roster", expected="the newest version, signed and current", got=got,
        hint="nothing was changed; ask a steward for a fresh copy",
    )  # fmt: skip


@contextmanager
def _locked(trusted: Path) -> Iterator[None]:
    """One check at a time, so that no process can replace a newer memory by an older one."""
    try:
        descriptor = os.open(trusted, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise _not_pinned(trusted) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_pinned(trusted: Path) -> bytes:
    try:
        return files.read_regular(trusted / PINNED, max_bytes=MAX_ROOT_BYTES)
    except InputError:
        raise _not_pinned(trusted) from None


def _not_pinned(trusted: Path) -> RosterNotPinned:
    return RosterNotPinned(
        where=str(trusted), expected="a pinned root", got="none",
        hint="not-fed roster pin SOURCE --root-sha256 DIGEST --out R, with the digest from a steward",
    )  # fmt: skip


def _memory(folder: Path) -> list[Path]:
    """Relative paths of what TUF remembers; the timestamp last."""
    roots = sorted(path.relative_to(folder) for path in (folder / "root_history").glob("*.root.json"))
    return [*roots, *(Path(name) for name in _REMEMBERED if (folder / name).is_file())]


def _copy_memory(trusted: Path, stage: Path) -> None:
    (stage / "root_history").mkdir()
    for path in _memory(trusted):
        (stage / path).write_bytes(files.read_regular(trusted / path, max_bytes=MAX_FILE_BYTES))


def _keep_memory(stage: Path, trusted: Path) -> None:
    for path in _memory(stage):
        (trusted / path).parent.mkdir(exist_ok=True)
        _write_if_changed(trusted / path, (stage / path).read_bytes(), mode=0o600)


def _write_if_changed(path: Path, data: bytes, *, mode: int) -> None:
    if not path.is_file() or path.read_bytes() != data:
        files.write_atomic(path, data, overwrite=True, mode=mode)
