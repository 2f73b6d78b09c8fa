"""The header of a safetensors file, read strictly and without the library: no tensor byte is touched.

The profile is narrower than the library's: one spelling, no duplicate keys, no hole, no overlap, no empty tensor, no
name that could be a path. It holds for organs and for whole base checkpoints alike. Proved by:
tests/attacks/test_tensor_header.py.
Source: https://huggingface.co/docs/safetensors, "format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from not_fed import canonical
from not_fed.errors import InputError

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
ORGAN_HEADER_BYTES = 4 << 20  # a span is a part of a model, and its author may be hostile: what JSON becomes in memory
ORGAN_TENSORS = 16_384  # is many times its length
MAX_METADATA_ENTRIES = 64
MAX_METADATA_BYTES = 4096
MAX_DIMENSIONS = 8
_MAX_INTEGER = 1 << 48
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_LENGTH_BYTES = 8
_MARKS_PER_TENSOR = 16  # one brace, two brackets, at most eleven commas


class BadTensorHeader(InputError):
    """This is not a well-formed safetensors file."""

    code = "tensor-header"


class Readable(Protocol):
    """Anything that can be read front to back."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor; `begin` and `end` count from `TensorHeader.data_start`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """All that a safetensors file says about its tensors; `data_start` counts from the start of the file."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def check_organ_header(file: Readable, size_bytes: int, *, where: str = "organ") -> TensorHeader:
    """`check_header` within the limits of an organ; errors as there."""
    return check_header(file, size_bytes, where=where, max_header_bytes=ORGAN_HEADER_BYTES, max_tensors=ORGAN_TENSORS)


def check_header(
    file: Readable, size_bytes: int, *, where: str = "safetensors file", max_header_bytes: int = MAX_HEADER_BYTES,
    max_tensors: int = MAX_TENSORS, max_metadata_bytes: int = MAX_METADATA_BYTES,
) -> TensorHeader:  # fmt: skip
    """Read and check the header of the file that starts where `file` stands; `file` is left at the data.

    Args:
        size_bytes: of the whole safetensors file.
        where: what it is, for the error.
    Raises:
        BadTensorHeader: anything outside the profile. Nothing else escapes.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 2 <= length <= min(max_header_bytes, size_bytes - _LENGTH_BYTES):
        raise _bad(where, f"a header of 2 to {max_header_bytes:,} bytes within the file", f"length {length:,}")
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise _bad(where, "a JSON object right after the length", "something else")
    marks = _MARKS_PER_TENSOR * max_tensors + 2 * MAX_METADATA_ENTRIES * max_metadata_bytes
    if sum(map(raw.count, (b"{", b"[", b","))) > marks:  # before it becomes a million lists
        raise _bad(where, f"1 to {max_tensors:,} tensors", "more brackets and commas than they need")
    try:
        entries = canonical.loads(raw, where=where)
    except canonical.BadJson as error:
        raise _bad(where, error.expected, error.got) from None
    if not isinstance(entries, dict):
        raise _bad(where, "a JSON object", "something else")
    metadata = _metadata(entries.pop("__metadata__", {}), where, max_metadata_bytes)
    if not 1 <= len(entries) <= max_tensors:
        raise _bad(where, f"1 to {max_tensors:,} tensors", f"{len(entries):,}")
    tensors = {name: _entry(name, value, where) for name, value in entries.items()}
    _check_tiling(tensors, size_bytes - _LENGTH_BYTES - length, where)
    return TensorHeader(tensors=tensors, metadata=metadata, data_start=_LENGTH_BYTES + length)


def _metadata(value: Any, where: str, max_bytes: int) -> dict[str, str]:  # noqa: ANN401  unchecked JSON
    if not isinstance(value, dict) or len(value) > MAX_METADATA_ENTRIES:
        raise _bad(where, f"metadata with at most {MAX_METADATA_ENTRIES} entries", "something else")
    for key, text in value.items():
        if not isinstance(text, str) or len(key.encode()) > max_bytes or len(text.encode()) > max_bytes:
            raise _bad(where, f"metadata of texts up to {max_bytes:,} bytes", "something else")
    return value


def _entry(name: str, value: Any, where: str) -> TensorEntry:  # noqa: ANN401  unchecked JSON
    if not _NAME.fullmatch(name):
        raise _bad(where, "tensor names of letters, digits, dots, dashes and underscores", f"{len(name)} characters")
    where = f"{where}, tensor {name}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(where, "dtype, shape and data_offsets", "other fields")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad(where, f"a dtype of {', '.join(ITEM_BYTES)}", "another")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise _bad(where, f"a shape of at most {MAX_DIMENSIONS} positive whole numbers", "another")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _bad(where, "two whole numbers as data_offsets", "something else")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:  # unbounded integers: nothing overflows
        raise _bad(where, "as many bytes as dtype and shape need", "another number")
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _are_sizes(value: Any) -> bool:  # noqa: ANN401  unchecked JSON
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_INTEGER for item in value)


def _check_tiling(tensors: Mapping[str, TensorEntry], data_bytes: int, where: str) -> None:
    at = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry.begin):
        if entry.begin != at:
            raise _bad(
                where, "tensors side by side, without a hole or an overlap", f"one at {entry.begin:,}, not {at:,}"
            )
        at = entry.end
    if at != data_bytes:
        raise _bad(where, f"tensors that fill {data_bytes:,} bytes", f"{at:,}")


def _bad(where: str, expected: str, got: str) -> BadTensorHeader:
    return BadTensorHeader(
        where=where, expected=expected, got=got, hint="nothing was loaded; the file is damaged or was made to harm"
    )
