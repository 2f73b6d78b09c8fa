"""Search everything a server received or stored for what must never be there: text, organs, keys.

The search looks for *windows*: short pieces of every record, of rows of every tensor and of every secret key, each in
the spellings that a careless program would send (UTF-8, UTF-16, JSON, base64, hex; float32, bfloat16, float16, and the
difference to the base model in each). It finds a copy at any offset. It does not find what was compressed or encrypted
first, and it says how it would fail: the same search must find one planted copy of every kind.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEXT_WINDOW = 24  # characters: long enough not to occur by chance, short enough to survive cutting
TENSOR_WINDOW = 32  # bytes
PREFIX = 8  # bytes compared in bulk
BLOCK = 1 << 22
TABLE_BITS = 24
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaintextCheck:
    """What was searched for, where, and what was found.

    Attributes:
        patterns: how many windows of each kind were searched for, e.g. {"text, utf-8": 1200, "organ, bfloat16": 840}.
        bytes_searched: size of everything that was searched.
        found: kind of window -> where it was found (at most a few places each); empty is the promise.
        planted: kinds of which one copy was planted in a copy of the haystack's tail, and
        planted_found: those of them that the same search found; must be all.
    """

    patterns: Mapping[str, int]
    bytes_searched: int
    found: Mapping[str, list[str]]
    planted: tuple[str, ...]
    planted_found: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Nothing was found, and the search proved that it can find each kind."""
        return not self.found and bool(self.planted) and set(self.planted) == set(self.planted_found)


@dataclass(slots=True)
class Windows:
    """Byte windows to search for, by kind."""

    kinds: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: str, window: bytes) -> None:
        """Take a window unless it is too short or too regular to mean anything (zeros, ones, padding)."""
        if len(window) >= 2 * PREFIX and len(set(window)) > 6 and len(set(window[:PREFIX])) > 3:
            self.kinds.setdefault(window, kind)

    def counts(self) -> dict[str, int]:
        """How many windows of each kind."""
        return dict(sorted(Counter(self.kinds.values()).items()))


def text_windows(texts: Iterable[str], *, into: Windows, per_text: int = 6) -> None:
    """Windows of each text, evenly spread, in every spelling."""
    for text in texts:
        last = max(0, len(text) - TEXT_WINDOW)
        for start in sorted({round(last * i / max(1, per_text - 1)) for i in range(per_text)}):
            piece = text[start : start + TEXT_WINDOW]
            for name, window in _spellings(piece):
                into.add(f"text, {name}", window)


def _spellings(piece: str) -> Iterator[tuple[str, bytes]]:
    plain = piece.encode()
    yield "utf-8", plain
    yield "utf-16", piece.encode("utf-16-le")
    yield "utf-16", piece.encode("utf-16-be")
    yield "json", json.dumps(piece).encode()[1:-1]
    yield "hex", plain.hex().encode()
    for window in _base64(plain):
        yield "base64", window


def _base64(data: bytes) -> Iterator[bytes]:
    """The three ways in which base64 of something larger may spell `data`; cut where neighbours have a say."""
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + data)
        yield text[(0, 2, 3)[shift] : len(text) - 4]


Tensors = Mapping[str, NDArray[np.float32]]
Words = Callable[[NDArray[np.float32]], bytes]  # how a secure sum would spell a change


def tensor_windows(
    organs: Iterable[Path],
    *,
    base: Tensors | Callable[[Path], Sequence[Tensors]] | None,
    into: Windows,
    rows: int = 6,
    words: Words | None = None,
) -> None:
    """Windows of many rows of every tensor, as numbers of each width and as differences to the base.

    Args:
        organs: organ files (safetensors).
        base: the same span of the base, float32, by organ tensor name; or what gives, for each organ, all that it may
            be told as a difference to: its span of the base, and where its round began. None searches no differences.
        words: the fixed-point words of a change, in which a secure sum without masks would send it.
        rows: places per tensor, evenly spread, the first and the last among them.
    """
    for path in organs:
        starts = base(path) if callable(base) else [] if base is None else [base]
        for name, tensor in read_float32(path).items():
            for start in _starts(tensor.size, count=rows):
                piece = tensor[start : start + TENSOR_WINDOW]
                _numbers("organ", piece, into)
                for before in starts:
                    if name in before:
                        change = piece - before[name][start : start + TENSOR_WINDOW]
                        _numbers("difference", change, into)
                        if words is not None:
                            into.add("difference, fixed point", words(change)[:TENSOR_WINDOW])


def _starts(size: int, *, count: int) -> list[int]:
    last = max(0, size - TENSOR_WINDOW)
    return sorted({round(last * i / max(1, count - 1)) for i in range(count)})


def _numbers(what: str, piece: NDArray[np.float32], into: Windows) -> None:
    for name, data in _widths(piece):
        into.add(f"{what}, {name}", data[:TENSOR_WINDOW])
    for window in _base64(piece.astype("<f4").tobytes()[:TENSOR_WINDOW]):
        into.add(f"{what}, base64", window)


def _widths(piece: NDArray[np.float32]) -> Iterator[tuple[str, bytes]]:
    bits = piece.astype("<f4").view("<u4")
    yield "float32", bits.tobytes()
    with np.errstate(over="ignore"):
        yield "float16", piece.astype("<f2").tobytes()
    yield "bfloat16", (bits >> 16).astype("<u2").tobytes()  # cut off
    yield "bfloat16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()  # rounded to nearest even


def read_float32(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a safetensors file, flat, as float32."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).to(torch.float32).flatten().numpy() for name in tensors.keys()}  # noqa: SIM118


def key_windows(secrets: Iterable[bytes], *, into: Windows) -> None:
    """Windows of secret keys and pass phrases: raw, hex, base64; long ones (PEM, bech32) in pieces."""
    for secret in secrets:
        for start in range(0, max(1, len(secret) - 2 * PREFIX), TENSOR_WINDOW):
            piece = secret[start : start + TENSOR_WINDOW]
            into.add("key, raw", piece)
            into.add("key, hex", piece.hex().encode())
            for window in _base64(piece):
                into.add("key, base64", window)


class Search:
    """All windows at once over any number of bytes: a bulk comparison of eight-byte prefixes, then an exact one."""

    def __init__(self, windows: Windows) -> None:
        self._by_prefix: dict[int, list[bytes]] = {}
        for window in windows.kinds:
            self._by_prefix.setdefault(int.from_bytes(window[:PREFIX], "little"), []).append(window)
        self._kinds = windows.kinds
        self._longest = max((len(window) for window in windows.kinds), default=PREFIX)
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        prefixes = np.array(sorted(self._by_prefix), dtype=np.uint64)
        self._table[_slot(prefixes)] = True
        self._prefixes = prefixes

    def kinds_in(self, data: bytes | memoryview) -> dict[str, int]:
        """Kinds of window that occur in `data` -> offset of the first occurrence."""
        found: dict[str, int] = {}
        view = memoryview(data)
        step = BLOCK
        for start in range(0, len(view), step):
            block = bytes(view[start : start + step + self._longest])
            for offset, window in self._hits(block):
                found.setdefault(self._kinds[window], start + offset)
        return found

    def _hits(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        for shift in range(PREFIX):
            count = (len(block) - shift) // PREFIX
            if count <= 0:
                continue
            values = np.frombuffer(block, dtype="<u8", count=count, offset=shift)
            candidates = np.flatnonzero(self._table[_slot(values)])
            for index in candidates[np.isin(values[candidates], self._prefixes)]:
                offset = shift + int(index) * PREFIX
                for window in self._by_prefix[int(values[index])]:
                    if block.startswith(window, offset):
                        yield offset, window


def _slot(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return (values * _MIX) >> np.uint64(64 - TABLE_BITS)


def search_plaintext(
    haystack: Sequence[Path],
    *,
    messages: Iterable[bytes] = (),
    texts: Iterable[str],
    organs: Iterable[Path],
    base: Tensors | Callable[[Path], Sequence[Tensors]] | None,
    keys: Iterable[bytes],
    words: Words | None = None,
) -> PlaintextCheck:
    """Search folders and messages for text, organs and keys, and prove that the search can find each.

    Args:
        haystack: files and folders, searched with all that is in them.
        messages: bytes of each message that the server received or sent.
        texts, organs, base, keys, words: what must not be there; see `text_windows`, `tensor_windows`, `key_windows`.
    """
    windows = Windows()
    text_windows(texts, into=windows)
    tensor_windows(organs, base=base, into=windows, words=words)
    key_windows(keys, into=windows)
    search = Search(windows)
    found: dict[str, list[str]] = {}
    size = 0
    for where, data in _everything(haystack, messages):
        size += len(data)
        for kind, offset in search.kinds_in(data).items():
            found.setdefault(kind, []).append(f"{where}, byte {offset}")
    planted, seen = _plant(windows, search)
    return PlaintextCheck(
        patterns=windows.counts(),
        bytes_searched=size,
        found={kind: places[:5] for kind, places in found.items()},
        planted=planted,
        planted_found=seen,
    )


def _plant(windows: Windows, search: Search) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One copy of each kind at an odd offset in random bytes; which kinds the search then reports."""
    kinds: dict[str, bytes] = {}
    for window, kind in windows.kinds.items():
        kinds.setdefault(kind, window)
    soil = b"".join(os.urandom(1021) + window + os.urandom(7) for window in kinds.values())
    return tuple(sorted(kinds)), tuple(sorted(search.kinds_in(soil)))


def _everything(haystack: Sequence[Path], messages: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    for root in haystack:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(root.parent)), path.read_bytes()
    for number, message in enumerate(messages):
        yield f"message {number}", message
