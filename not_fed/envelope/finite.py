"""Weights that can be weights: no NaN, no infinity, nothing absurd. On bit patterns, without a tensor library.

Of an IEEE number, all bits but the sign are larger the larger its magnitude, and larger still for infinity and NaN. So
one maximum over integers answers the question, and the upper 16 bits of each number suffice: the bounds lie on them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from not_fed.envelope.header import ITEM_BYTES, TensorEntry, TensorHeader
from not_fed.errors import TrustError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Words: TypeAlias = "NDArray[Any]"

MAX_WEIGHT = 1 << 17
_BLOCK_BYTES = 1 << 18
_LANES = 4  # 16-bit words in a group of 8 bytes
_ROWS = (4096, 128, _LANES)  # numpy folds long rows at the speed of memory; what is left of a block, in shorter ones


@dataclass(frozen=True, slots=True)
class _Limit:
    """Bit patterns without sign: at `special` and above not a number or infinite; at `absurd` and above too large."""

    special: int
    absurd: int
    signed: bool = True


# F16 ends at 65504, which is within the bound. F8_E4M3 has no infinity; its NaN sets seven bits. F8_E8M0 has no sign.
_LIMITS: Mapping[str, _Limit] = {
    "F64": _Limit(0x7FF0_0000_0000_0000, 0x4100_0000_0000_0000), "F32": _Limit(0x7F80_0000, 0x4800_0000),
    "BF16": _Limit(0x7F80, 0x4800), "F16": _Limit(0x7C00, 0x7C00), "F8_E5M2": _Limit(0x7C, 0x7C),
    "F8_E4M3": _Limit(0x7F, 0x7F), "F8_E8M0": _Limit(0xFF, 0xFF, signed=False),
}  # fmt: skip


# The lowest bound for the upper 16 bits of any type that has them. A block of bfloat16 or float16 weights mostly stays
# below it in all its words, which is settled sooner than by place; a block of float32, with its random lower halves,
# never: then it is tried again with every sixteenth block.
_LOWEST = min(limit.absurd >> 8 * (ITEM_BYTES[dtype] - 2) for dtype, limit in _LIMITS.items() if ITEM_BYTES[dtype] > 1)
_TRY_EVERY = 16


class OrganNotFinite(TrustError):
    """The organ contains NaN or infinity, which would destroy whatever it is averaged with."""

    code = "organ-not-finite"


class OrganAbsurd(TrustError):
    """The organ contains numbers that no weight of a language model has, and that would drown all others."""

    code = "organ-absurd"


class ReadAt(Protocol):
    """Reads a known place again."""

    def __call__(self, offset: int, into: memoryview, /) -> None:
        """Fill `into` with the organ's bytes from `offset` on."""


class Peaks:
    """For each block of a byte stream, the largest pattern among its 16-bit words, by their place in groups of 8 bytes.

    Computed while the bytes pass, whatever they are: like a digest, it treats all bytes alike and decides nothing.
    Where numbers begin and of which type they are is asked only later, of a header that is known to be the author's;
    then most blocks need not be read a second time.
    """

    def __init__(self) -> None:
        import numpy as np

        self._np = np
        self._ends: list[int] = [0]
        self._peaks: list[tuple[int, ...]] = []
        self._small = True  # whether the last block had nothing but small patterns

    def add(self, block: memoryview) -> None:
        """The next block; each but the last has a multiple of 8 bytes."""
        words = len(block) // 8 * _LANES
        plain = self._np.frombuffer(block, dtype="<u2", count=words)
        try_whole = words > 0 and (self._small or len(self._peaks) % _TRY_EVERY == 0)
        whole = _peak(plain) if try_whole else _LOWEST
        self._small = whole < _LOWEST
        peak = [whole] * _LANES if self._small else self._by_place(plain)
        begin = self._ends[-1]
        if words:
            self._ends.append(begin + words * 2)
            self._peaks.append(tuple(peak))
        if len(block) % 8:  # only at the end of the stream: too few to be worth a figure, so never cleared
            self._ends.append(begin + len(block))
            self._peaks.append((0xFFFF,) * _LANES)

    def _by_place(self, plain: Words) -> list[int]:
        peak, start = [0] * _LANES, 0
        for at, width in enumerate(_ROWS):
            if count := (len(plain) - start) // width * width:
                peak = list(map(max, peak, _fold(plain[start : start + count], _ROWS[at:])))
                start += count
        return peak

    def unclear(self, begin: int, end: int, *, item_bytes: int, limit: int) -> Iterator[tuple[int, int]]:
        """The parts of [begin, end) in which a number may reach `limit`, a bound for the numbers' upper 16 bits.

        Numbers of `item_bytes` begin at `begin`. A block may hold bytes of neighbours too: then it is not cleared more
        often than it must be, and never less.
        """
        if item_bytes == 1 or begin % 2:
            yield begin, end
            return
        lanes = {(begin + (item + 1) * item_bytes - 2) // 2 % _LANES for item in range(_LANES)}
        for at in range(bisect_right(self._ends, begin) - 1, len(self._peaks)):
            first, last = max(begin, self._ends[at]), min(end, self._ends[at + 1])
            if first >= end:
                return
            if any(self._peaks[at][lane] >= limit for lane in lanes):
                yield _whole_items(first, last, begin, end, item_bytes)
        if self._ends[-1] < end:
            yield _whole_items(max(begin, self._ends[-1]), end, begin, end, item_bytes)


def check_weights(header: TensorHeader, *, read_at: ReadAt, peaks: Peaks | None = None, where: str = "organ") -> None:
    """Look at every number of every tensor, in constant memory; read again only what `peaks` could not clear.

    Raises:
        OrganNotFinite, OrganAbsurd: naming the first such tensor. Whole-number tensors pass.
    Proved by: tests/unit/test_header.py, tests/attacks/test_memory.py
    """
    scratch = memoryview(bytearray(_BLOCK_BYTES))
    for name, entry in sorted(header.tensors.items(), key=lambda item: item[1].begin):
        limit = _LIMITS.get(entry.dtype)
        if limit is None:
            continue
        for begin, end in _unclear(header, entry, limit, peaks):
            for start in range(begin, end, _BLOCK_BYTES):
                view = scratch[: min(_BLOCK_BYTES, end - start)]
                read_at(start, view)
                _check_patterns(view, entry.dtype, limit, where=f"{where}, tensor {name}")


def _unclear(header: TensorHeader, entry: TensorEntry, limit: _Limit, peaks: Peaks | None) -> Iterator[tuple[int, int]]:
    item_bytes, begin, end = ITEM_BYTES[entry.dtype], header.data_start + entry.begin, header.data_start + entry.end
    if peaks is None:
        return iter([(begin, end)])
    return peaks.unclear(begin, end, item_bytes=item_bytes, limit=limit.absurd >> 8 * max(0, item_bytes - 2))


def _whole_items(first: int, last: int, begin: int, end: int, item_bytes: int) -> tuple[int, int]:
    """Widened to whole numbers."""
    return first - (first - begin) % item_bytes, min(end, last + (begin - last) % item_bytes)


def _check_patterns(block: memoryview, dtype: str, limit: _Limit, *, where: str) -> None:
    import numpy as np

    plain = np.frombuffer(block, dtype=f"<u{ITEM_BYTES[dtype]}")
    peak = _peak(plain) if limit.signed else int(plain.max())
    if peak >= limit.special:
        raise OrganNotFinite(
            where=where, expected="finite numbers", got="NaN or infinity", hint="nothing was written; tell the author"
        )
    if peak >= limit.absurd:
        raise OrganAbsurd(
            where=where, expected=f"numbers smaller than {MAX_WEIGHT:,} in magnitude", got="a larger one",
            hint="nothing was written; no language model has such a weight, tell the author",
        )  # fmt: skip


def _peak(plain: Words) -> int:
    """The largest pattern without its sign bit."""
    largest, half = int(plain.max()), 1 << 8 * plain.itemsize - 1
    return max(int(_signed(plain).max()), largest ^ half if largest >= half else 0)


def _fold(plain: Words, widths: Sequence[int]) -> list[int]:
    """Of 16-bit words, the largest without its sign bit, by place in groups of four."""
    largest, positive = plain, _signed(plain)  # two maxima need no copy; masking the sign would
    for width in widths:
        largest, positive = largest.reshape(-1, width).max(axis=0), positive.reshape(-1, width).max(axis=0)
    signs = zip(largest.tolist(), positive.tolist(), strict=True)
    return [max(high, low ^ 0x8000 if low >= 0x8000 else 0, 0) for low, high in signs]


def _signed(plain: Words) -> Words:
    return plain.view(plain.dtype.str.replace("u", "i"))
