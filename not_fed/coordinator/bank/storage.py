"""Where the bank's objects lie: a private folder by default, or whatever fsspec reaches, such as an S3 bucket.

A folder is written by `files`, since fsspec's own neither renames a whole file into place nor calls fsync.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from not_fed import files
from not_fed.errors import InputError, PeerError
from not_fed.transfer.chunks import MAX_CHUNK_BYTES, MAX_LIST_BYTES

MAX_OBJECT_BYTES = max(MAX_CHUNK_BYTES, MAX_LIST_BYTES)


class StorageFailed(PeerError):
    """The bank's storage did not do what was asked."""

    code = "bank-storage"


class StorageMissing(InputError):
    """What reaches this kind of storage is not installed, or there is no such kind."""

    code = "bank-storage-unknown"


class Storage(Protocol):
    """Named objects of at most 64 MiB. A name is `<digest>/<rest>`."""

    def write(self, name: str, data: bytes) -> None:
        """Store, whole or not at all, replacing what was there; raises StorageFailed, NoSpace."""

    def read(self, name: str) -> bytes | None:
        """An object, or None."""

    def names(self, group: str) -> dict[str, int]:
        """Rest of the name -> bytes, of every object whose name begins with `group`."""

    def groups(self) -> Iterator[tuple[str, float]]:
        """Every group, and when (Unix time) something in it was last written, as far as the storage tells."""

    def remove(self, group: str) -> None:
        """Delete a whole group; nothing when there is none."""

    def drop(self, name: str) -> None:
        """Delete one object; nothing when there is none."""

    def free_bytes(self) -> int | None:
        """What there is room for; None where nobody knows."""


class FolderStorage:
    """A folder of this machine, mode 0700; files of mode 0600 that survive power loss."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """As Storage says."""
        path = self.folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        files.write_atomic(path, data, overwrite=True)

    def read(self, name: str) -> bytes | None:
        """As Storage says."""
        path = self.folder / name
        return files.read_regular(path, max_bytes=MAX_OBJECT_BYTES) if path.is_file() else None

    def names(self, group: str) -> dict[str, int]:
        """As Storage says."""
        return {path.name: path.stat().st_size for path in (self.folder / group).glob("[!.]*") if path.is_file()}

    def groups(self) -> Iterator[tuple[str, float]]:
        """As Storage says."""
        for path in sorted(self.folder.glob("[!.]*")):
            yield path.name, path.stat().st_mtime

    def remove(self, group: str) -> None:
        """As Storage says."""
        shutil.rmtree(self.folder / group, ignore_errors=True)

    def drop(self, name: str) -> None:
        """As Storage says."""
        (self.folder / name).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """As Storage says."""
        return shutil.disk_usage(self.folder).free


class UrlStorage:
    """A prefix that fsspec reaches. Credentials and endpoint come from the environment, as the library has them."""

    def __init__(self, url: str) -> None:
        """Raises StorageMissing."""
        import fsspec

        try:
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageMissing(
                where="coordinator.toml, field bank.storage", expected="a folder, or a URL that fsspec knows",
                got=f"{url}: {error}"[:200], hint="for s3:// install 'not-fed[s3]'",
            ) from None  # fmt: skip
        self._root = str(root).rstrip("/")

    def write(self, name: str, data: bytes) -> None:
        """As Storage says."""
        self._try(lambda: self._fs.pipe_file(self._path(name), data))

    def read(self, name: str) -> bytes | None:
        """As Storage says."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        found: bytes | None = self._try(read)
        return found

    def names(self, group: str) -> dict[str, int]:
        """As Storage says."""
        return {str(one["name"]).rpartition("/")[2]: int(one["size"] or 0) for one in self._list(group)}

    def groups(self) -> Iterator[tuple[str, float]]:
        """As Storage says; the time is that of the newest object."""
        for one in self._list(""):
            group = str(one["name"]).rstrip("/").rpartition("/")[2]
            yield group, max((_moment(each) for each in self._list(group)), default=time.time())

    def remove(self, group: str) -> None:
        """As Storage says."""
        for name in self.names(group):
            self.drop(f"{group}/{name}")

    def drop(self, name: str) -> None:
        """As Storage says."""

        def drop() -> None:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._try(drop)

    def free_bytes(self) -> int | None:
        """As Storage says."""
        return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _list(self, group: str) -> list[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            try:
                return list(self._fs.ls(self._path(group), detail=True))
            except FileNotFoundError:
                return []

        found: list[dict[str, Any]] = self._try(listed)
        return found

    def _try(self, work: Any) -> Any:  # noqa: ANN401
        """Every library behind fsspec has errors of its own; all of them are one of ours."""
        try:
            return work()
        except Exception as error:
            raise StorageFailed(
                where=f"bank storage {self._root}", expected="it to answer", got=type(error).__name__,
                hint="check the network, the credentials in the environment, and the bucket",
            ) from error  # fmt: skip


def _moment(listed: dict[str, Any]) -> float:
    found = listed.get("LastModified") or listed.get("mtime") or listed.get("created")
    return found.timestamp() if isinstance(found, datetime) else float(found or time.time())


def storage_of(place: str, *, home: Path) -> Storage:
    """The storage that `bank.storage` in coordinator.toml names: a URL, or a folder relative to the home."""
    return UrlStorage(place) if "://" in place else FolderStorage(home / place)
