"""TUF over files: the stock client of python-tuf decides; this module feeds it, and checks what TUF leaves open.

On top of TUF: enough people, not only enough keys (people.py). Timestamp and snapshot name what they vouch for by the
digest of what was *signed*: several stewards sign one after the other, and with each signature the digest of the file
itself would be another. Exactly two targets, a third once there are plans, and no delegations.
Specification: https://theupdateframework.github.io/specification/latest/
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from not_fed import canonical, files
from not_fed.errors import InputError, NotFedError, TrustError
from not_fed.trust import people

TARGETS: Final = ("roster.json", "recalls.json")
PLANS: Final = "plans.json"  # the third target, from a federation's first secure sum on
SIGNED: Final = "x-not-fed-signed"
PREVIOUS: Final = "x-not-fed-previous"
NO_PREVIOUS: Final = "0" * 64
MAX_FILE_BYTES: Final = 16_000_000
MAX_METADATA_BYTES: Final = 512_000
ROOT_NAME: Final = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_METADATA_NAME = re.compile(r"(?:[1-9][0-9]{0,8}\.(?:root|snapshot|targets)|timestamp)\.json")
_TARGET_NAME = re.compile(r"[0-9a-f]{64}\.(?:roster|recalls|plans)\.json")
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
class Material:
    """The files of one roster version: all that is needed to verify it again. `roots` begins with the pinned one."""

    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    contents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What TUF and the people check accepted."""

    material: Material
    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets

    @property
    def expires_at(self) -> datetime:
        """When the first of the four expires."""
        return min(part.expires for part in (self.root, self.timestamp, self.snapshot, self.targets))

    def is_stale(self, now: datetime) -> bool:
        """Past the date up to which the stewards promised that there is nothing newer."""
        return min(self.timestamp.expires, self.snapshot.expires) <= now


class Source(Protocol):
    """Where the files of a roster come from."""

    def read(self, kind: str, name: str) -> bytes | None:
        """A file of `metadata` or `targets`; None when there is none that may be read."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder that anybody may have written: regular files of known names and sizes only."""

    folder: Path

    def read(self, kind: str, name: str) -> bytes | None:
        """As Source says; links, FIFOs and whatever is too large count as missing."""
        try:
            return files.read_regular(self.folder / kind / name, max_bytes=MAX_FILE_BYTES)
        except InputError:
            return None


@dataclass(frozen=True, slots=True)
class MaterialSource:
    """Files at hand."""

    files: Mapping[str, bytes]

    def read(self, kind: str, name: str) -> bytes | None:
        """As Source says."""
        return self.files.get(f"{kind}/{name}")


class _Fetcher(FetcherInterface):
    """Reads `folder:///metadata/...` and `folder:///targets/...` from a source; knows no network."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        kind, _, name = urlsplit(url).path.lstrip("/").partition("/")
        known = {"metadata": _METADATA_NAME, "targets": _TARGET_NAME}.get(kind)
        data = self._source.read(kind, name) if known is not None and known.fullmatch(name) else None
        if data is None:
            raise tuf_errors.DownloadHTTPError("no such file", 404)
        return iter([data])


def repository_of(source: Path) -> Path:
    """The TUF repository in a roster folder, or `source` itself when it is one; raises NotAFile."""
    for candidate in (source / "repository", source):
        try:
            if (candidate / "metadata").is_dir():
                return candidate
        except (OSError, ValueError):
            continue
    raise files.NotAFile(where=str(source), expected="a roster folder", got="none", hint="create or pin one")


def layout(material: Material) -> dict[str, bytes]:
    """Path to bytes, as TUF lays a repository out."""
    found = {f"metadata/{_parse(data).signed.version}.root.json": data for data in material.roots}
    snapshot, targets = (_parse(data).signed for data in (material.snapshot, material.targets))
    found[f"metadata/{targets.version}.targets.json"] = material.targets
    found[f"metadata/{snapshot.version}.snapshot.json"] = material.snapshot
    for name, data in material.contents.items():
        found[f"targets/{hashlib.sha256(data).hexdigest()}.{name}"] = data
    return found | {"metadata/timestamp.json": material.timestamp}


def verify(
    source: Source, *, pinned: bytes, known: Material | None, now: datetime, accept_stale: bool = False,
    accept_expired: bool = False,
) -> Verified:  # fmt: skip
    """Check what `source` offers against the pinned root and what is known; no state is changed.

    Args:
        now: the time against which expiry is judged.
        accept_stale: go on past the dates of timestamp and snapshot. Every signature is checked all the same.
        accept_expired: past all dates, for the steward who is about to renew it. All other checks stay.
    Raises:
        RosterExpired, RosterRollback, RosterUnsigned, RosterAltered, RosterMalformed, TooFewPeople.
    Proved by: tests/attacks/test_roster.py
    """
    with _scratch() as stage:
        _lay_out(known, stage)
        try:
            verified = _run(stage, source, pinned, reference=_WHENEVER if accept_stale or accept_expired else now)
        except (tuf_errors.RepositoryError, tuf_errors.DownloadError, ValueError, KeyError, TypeError) as error:
            raise _translate(error) from None
    if accept_stale and min(verified.root.expires, verified.targets.expires) <= now:
        raise _translate(tuf_errors.ExpiredMetadataError("root or targets"))
    _check_bindings(verified)
    _check_all_people(verified.material)
    _check_since(verified)
    return verified


def target_names(targets: Targets) -> tuple[str, ...]:
    """What must be there: roster and recalls, and the plans where the stewards have signed some."""
    return (*TARGETS, PLANS) if PLANS in targets.targets else TARGETS


def signed_sha256(metadata: Metadata[Any]) -> str:
    """The digest of what signatures are over: the same whoever has signed so far."""
    return hashlib.sha256(metadata.signed_bytes).hexdigest()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for TUF's own files, in the system's place for such; raises NoSpace where there is none to be had."""
    try:
        with tempfile.TemporaryDirectory(prefix="not-fed-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise files.NoSpace(
            where="temporary files", expected="a folder with room, named by TMPDIR or the system's own",
            got=os.strerror(error.errno or 0).lower(), hint="nothing was changed; make room, or set TMPDIR",
        ) from None  # fmt: skip


def parse_metadata(data: bytes) -> Metadata[Any]:
    """A metadata file, strictly JSON, not verified; raises RosterAltered."""
    try:
        canonical.loads(data, where="roster")
        metadata = _parse(data)
        len(metadata.signed_bytes)  # TUF reads fractions in places where it cannot write them again
    except (DeserializationError, SerializationError, canonical.BadJson) as error:
        raise _translate(error) from None
    return metadata


def find_root(source: Path, *, sha256: str) -> bytes:
    """The root of that digest, which is over its signed part; raises RosterNotPinned."""
    for name in sorted(_names(source / "metadata")):
        data = FolderSource(source).read("metadata", name) if ROOT_NAME.fullmatch(name) else None
        try:
            if data is not None and signed_sha256(parse_metadata(data)) == sha256:
                return data
        except TrustError:
            continue
    raise RosterNotPinned(
        where="roster to pin", expected=f"a root with digest {sha256[:16]}...", got="none of that digest",
        hint="compare the digest with a steward; never pin what the same channel told you",
    )  # fmt: skip


def altered(got: str) -> RosterAltered:
    """The error for one observation."""
    return RosterAltered(
        where="roster", expected="the newest version, signed and current", got=got,
        hint="nothing was changed; ask a steward for a fresh copy",
    )  # fmt: skip


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _lay_out(known: Material | None, stage: Path) -> None:
    """What TUF remembers, where it looks for it."""
    (stage / "root_history").mkdir()
    if known is None:
        return
    for data in known.roots:
        (stage / "root_history" / f"{_parse(data).signed.version}.root.json").write_bytes(data)
    for name in ("timestamp", "snapshot", "targets"):
        (stage / f"{name}.json").write_bytes(getattr(known, name))


def _run(stage: Path, source: Source, pinned: bytes, *, reference: datetime) -> Verified:
    updater = Updater(
        metadata_dir=str(stage), metadata_base_url="folder:///metadata/", target_dir=str(stage),
        target_base_url="folder:///targets/", fetcher=_Fetcher(source), bootstrap=pinned,
        config=UpdaterConfig(timestamp_max_length=MAX_METADATA_BYTES),  # each steward adds 7 KB of signatures
    )  # fmt: skip
    trusted = updater._trusted_set
    first = trusted.root.version
    trusted.reference_time = reference  # TUF asks the clock once, here; ours comes from the caller
    updater.refresh()
    contents = {}
    for name in target_names(trusted.targets):
        info = updater.get_targetinfo(name)
        if info is None:
            raise tuf_errors.RepositoryError("a target is missing")
        contents[name] = Path(updater.download_target(info, str(stage / f"target.{name}"))).read_bytes()
    roots = [f"root_history/{number}.root.json" for number in range(first, trusted.root.version + 1)]
    material = Material(
        roots=tuple((stage / name).read_bytes() for name in roots), contents=contents,
        **{name: (stage / f"{name}.json").read_bytes() for name in ("timestamp", "snapshot", "targets")},
    )  # fmt: skip
    return Verified(
        material=material, root=trusted.root, timestamp=trusted.timestamp, snapshot=trusted.snapshot,
        targets=trusted.targets,
    )  # fmt: skip


def _check_bindings(verified: Verified) -> None:
    """What TUF leaves open: which of several signed files of one version, and what else may be in them."""
    material = verified.material
    targets, snapshot = parse_metadata(material.targets), parse_metadata(material.snapshot)
    named = (verified.timestamp.unrecognized_fields.get(SIGNED), verified.snapshot.unrecognized_fields.get(SIGNED))
    if named != (signed_sha256(snapshot), signed_sha256(targets)):
        raise altered("files that do not match each other")
    if set(verified.targets.targets) != set(target_names(verified.targets)) or verified.targets.delegations is not None:
        raise altered("more than a roster and its recalls and plans")


def _check_all_people(material: Material) -> None:
    roots = [parse_metadata(data) for data in material.roots]
    for before, root in zip([roots[0], *roots], roots, strict=False):
        people.check_people(before.signed, root)
        people.check_people(root.signed, root)
    for data in (material.targets, material.snapshot, material.timestamp):
        people.check_people(roots[-1].signed, parse_metadata(data))


def _check_since(verified: Verified) -> None:
    """No version from before the newest root: TUF forgets the versions it saw when the stewards change (5.3.11)."""
    if verified.targets.version < people.since_of(verified.root):
        raise _translate(tuf_errors.BadVersionNumberError("targets from before the root"))


def _parse(data: bytes) -> Metadata[Any]:
    return Metadata.from_bytes(data)


def _translate(error: Exception) -> NotFedError:
    kinds: tuple[tuple[type[Exception], type[TrustError], str], ...] = (
        (tuf_errors.ExpiredMetadataError, RosterExpired, "metadata past its date"),
        (tuf_errors.BadVersionNumberError, RosterRollback, "a lower or skipped version"),
        (tuf_errors.UnsignedMetadataError, RosterUnsigned, "too few valid signatures"),
    )
    found = next(((kind, got) for tuf_kind, kind, got in kinds if isinstance(error, tuf_kind)), None)
    plain = altered("files that do not match each other")
    if found is None:
        return plain
    return found[0](where=plain.where, expected=plain.expected, got=found[1], hint=plain.hint)
