"""The tree as files, in the layout of c2sp.org/tlog-tiles: a folder that a web server could hand out as it is.

    tile/<level>/<N>              256 hashes; level 0 has leaf hashes, above it one hash for each full tile below
    tile/<level>/<N>.p/<width>    the last tile of a level while it is not full
    tile/entries/<N>[.p/<width>]  the leaves themselves, each after its length in two bytes

N is written in groups of three digits, all but the last after an `x`: 1234067 is x001/x234/067. What others may have
written is read with its exact length and believed only as far as a proof from it leads to a signed root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from not_fed import files
from not_fed.errors import InputError, TrustError
from not_fed.trust.log_entries import MAX_ENTRY_BYTES, BadEntry, check_entry
from not_fed.trust.log_tree import HASH_BYTES, leaf_hash, root_of

TILE_WIDTH: Final = 256
TILE_HEIGHT: Final = 8
_LENGTH_BYTES: Final = 2
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (_LENGTH_BYTES + MAX_ENTRY_BYTES)
Level = int | Literal["entries"]


class LogDamaged(TrustError):
    """The log's files do not add up to its checkpoint."""

    code = "log-damaged"


def damaged(got: str, *, where: str, expected: str = "files that lead to the checkpoint's root") -> LogDamaged:
    """The error for one observation."""
    return LogDamaged(
        where=where, expected=expected, got=got, hint="nothing was signed or handed out; restore the log's folder"
    )


def tile_path(level: Level, index: int, *, width: int = TILE_WIDTH) -> Path:
    """Where a tile lies below the log's folder.

    >>> str(tile_path(0, 1234067)), str(tile_path("entries", 5, width=7))
    ('tile/0/x001/x234/067', 'tile/entries/005.p/7')
    """
    digits = f"{index % 1000:03}"
    while index := index // 1000:
        digits = f"x{index % 1000:03}/{digits}"
    return Path("tile", str(level), digits if width == TILE_WIDTH else f"{digits}.p/{width}")


class Tiles:
    """The tree of one size in a log's folder. Every read may raise LogDamaged."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._last: dict[int, tuple[int, list[bytes]]] = {}  # a proof asks for neighbours of one tile at each level

    def width(self, level: int, index: int) -> int:
        """How many hashes the tile has: 256, less for the last one, 0 beyond it."""
        return max(0, min(TILE_WIDTH, (self.size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH))

    def node(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree of 2**level leaves; this is `log_tree.Nodes`."""
        tile_level, inside = divmod(level, TILE_HEIGHT)
        tile, at = divmod(index << inside, TILE_WIDTH)
        found = self.hashes(tile_level, tile)[at : at + (1 << inside)]
        if len(found) != 1 << inside:
            raise damaged("a subtree beyond the tree", where="log")
        return root_of(found)

    def hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile."""
        if level in self._last and self._last[level][0] == index:
            return self._last[level][1]
        width = self.width(level, index)
        data, found = self._read(level, index, width, max_bytes=TILE_WIDTH * HASH_BYTES)
        if len(data) != found * HASH_BYTES:
            raise damaged(f"{len(data):,} bytes", where=str(tile_path(level, index, width=found)))
        row = [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]
        self._last[level] = index, row
        return row

    def entries(self, index: int) -> list[bytes]:
        """The leaves below level-0 tile `index`, each checked against its hash there."""
        width = self.width(0, index)
        data, found = self._read("entries", index, width, max_bytes=MAX_BUNDLE_BYTES)
        where = str(tile_path("entries", index, width=found))
        leaves = list(_read_bundle(data, where=where))
        if len(leaves) != found or [leaf_hash(leaf) for leaf in leaves[:width]] != self.hashes(0, index):
            raise damaged("entries of other hashes than in the tree", where=where)
        return leaves[:width]

    def tile_count(self, level: int) -> int:
        """How many tiles a level has."""
        return -(-(self.size >> (TILE_HEIGHT * level)) // TILE_WIDTH)

    def _read(self, level: Level, index: int, width: int, *, max_bytes: int) -> tuple[bytes, int]:
        """A tile and its width; the full one where the partial one is gone, which a log may delete then."""
        for found in sorted({width, TILE_WIDTH}):
            where = tile_path(level, index, width=found)
            try:
                return files.read_regular(self.folder / where, max_bytes=max_bytes), found
            except files.NotAFile as error:
                got = error.got
            except InputError as error:
                raise damaged(error.got, where=str(where)) from None
        raise damaged(got, where=str(tile_path(level, index, width=width)))


def bundle(entries: Sequence[bytes]) -> bytes:
    """Leaves as an entry bundle."""
    return b"".join(len(leaf).to_bytes(_LENGTH_BYTES, "big") + leaf for leaf in entries)


def _read_bundle(data: bytes, *, where: str) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data):
            raise damaged("an entry that ends beyond the file", where=where)
        try:
            yield check_entry(data[start:at])
        except BadEntry:
            raise damaged("an entry of another form", where=where) from None
