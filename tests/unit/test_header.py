"""The tensor header reader against the real library: it reads whatever real checkpoints are made of."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from not_fed.envelope.finite import _LIMITS, MAX_WEIGHT, OrganAbsurd, OrganNotFinite, Peaks, check_weights
from not_fed.envelope.header import ITEM_BYTES, check_header
from tests.support.tiny import tiny_llama

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def test_it_agrees_with_the_library_on_every_dtype(tmp_path: Path) -> None:
    tensors = {f"t.{name}": torch.zeros(3, 2).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    data = (tmp_path / "x").read_bytes()
    header = check_header(BytesIO(data), len(data))
    assert header.metadata == {"format": "pt"}
    with safe_open(tmp_path / "x", "pt") as reader:
        assert set(header.tensors) == set(reader.keys())
        for name, entry in header.tensors.items():
            assert list(entry.shape) == reader.get_slice(name).get_shape()
            assert entry.dtype == reader.get_slice(name).get_dtype()
            assert entry.end - entry.begin == 6 * ITEM_BYTES[entry.dtype]


def test_it_accepts_what_transformers_saves(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert len(check_header(BytesIO(data), len(data)).tensors) > 30


@settings(max_examples=100, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=6))
def test_it_places_each_tensor_where_the_library_put_it(shapes: list[list[int]]) -> None:
    tensors = {f"w{place}": torch.full(shape, float(place)) for place, shape in enumerate(shapes)}
    data = save(tensors)
    header = check_header(BytesIO(data), len(data))
    for name, tensor in tensors.items():
        entry = header.tensors[name]
        stored = data[header.data_start + entry.begin : header.data_start + entry.end]
        assert stored == tensor.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_a_finite_check_sees_exactly_what_torch_sees(dtype: str) -> None:
    """Every bit pattern of the small types, random ones and the extremes of the others."""
    bits = 8 * ITEM_BYTES[dtype]
    if bits <= 16:
        patterns = np.arange(1 << bits, dtype=f"u{bits // 8}")
    else:
        random = np.random.default_rng(0).integers(0, 1 << 63, 4096, dtype=np.uint64)
        patterns = np.concatenate([random << np.uint64(1), random]).astype(f"u{bits // 8}")
    values = torch.from_numpy(patterns.view(f"i{bits // 8}")).view(DTYPES[dtype])
    finite = values.double().isfinite() if bits < 64 else values.isfinite()
    sane = finite & (values.double().abs() < MAX_WEIGHT if dtype in ("F64", "F32", "BF16") else finite)
    assert finite.any()
    good = values[sane].contiguous()
    _check(good)
    for kind, bad_values in ((OrganNotFinite, values[~finite]), (OrganAbsurd, values[finite & ~sane])):
        for bad in bad_values[:50]:
            with pytest.raises(kind):
                _check(torch.cat([good[:100].view(torch.uint8), bad.reshape(1).view(torch.uint8)]).view(DTYPES[dtype]))
    assert len(values[finite & ~sane]) or dtype not in ("F64", "F32", "BF16")


def _check(values: torch.Tensor) -> None:
    """Alone, and with the peaks of every way in which the bytes may have come; both must say the same."""
    _check_file(save({"a": torch.zeros(3, dtype=torch.int64), "w": values}))


def _check_file(data: bytes, *, lead: int = 0) -> list[int]:
    """Returns how many bytes were read a second time, for blocks of several sizes."""
    header = check_header(BytesIO(data), len(data))
    verdicts: set[type[Exception] | None] = set()
    read: list[int] = []
    for size in (None, 8, 64, 8 * 1021, 8 * 4096 * 3, len(data) // 8 * 8 + 8):
        if size == 8 and len(data) > 4096:
            continue
        peaks = None if size is None else Peaks()
        for start in range(0, len(data), size or len(data)):
            if peaks is not None:
                copy = bytes(lead) + data[start : start + (size or 0)]  # `lead` moves it off its alignment in memory
                peaks.add(memoryview(copy)[lead:])
        read.append(0)

        def read_at(offset: int, into: memoryview) -> None:
            into[:] = data[offset : offset + len(into)]
            read[-1] += len(into)

        try:
            check_weights(header, read_at=read_at, peaks=peaks)
            verdicts.add(None)
        except (OrganNotFinite, OrganAbsurd) as error:
            verdicts.add(type(error))
    assert len(verdicts) == 1, verdicts
    if verdict := verdicts.pop():
        raise verdict(where="", expected="", got="", hint="")
    return read


def test_a_nan_in_any_block_is_found() -> None:
    values = torch.zeros(700_000)
    for place in (0, 262_143, 262_144, 699_999):
        values[place] = float("nan")
        with pytest.raises(OrganNotFinite):
            _check(values)
        values[place] = 0.0
    _check(values)


def test_bits_of_whole_numbers_mean_nothing() -> None:
    data = save({"w": torch.full((10,), 0x7FC00000, dtype=torch.int32)})
    assert _check_file(data) == [0] * 6
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["w"]["dtype"] == "I32"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_second_look_is_needed_only_where_something_is_wrong_or_mixed(dtype: torch.dtype) -> None:
    """Low halves of float32 are random and look like NaN as float16: only the upper halves may count."""
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    read = _check_file(save({"w": values}), lead=3)
    assert read[0] == values.nbytes
    for again, block in zip(read[1:4], (64, 8 * 1021, 8 * 4096 * 3), strict=True):
        assert again < block + 8  # the block that the header ends in, whose letters are large numbers


@st.composite
def organ_like(draw: st.DrawFn) -> bytes:
    """Tensors of any types side by side, at any place of a word; sane numbers, and at most one at or beyond a bound."""
    entries: dict[str, object] = {}
    body = bytearray()
    for number, name in enumerate(draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=5))):
        size, limit = ITEM_BYTES[name], _LIMITS.get(name)
        sane = st.integers(0, (limit.absurd if limit else 1 << 8 * size) - 1)
        patterns = draw(st.lists(sane, min_size=1, max_size=40))
        if limit and draw(st.booleans()):
            edge = draw(st.sampled_from([limit.absurd - 1, limit.absurd, limit.special - 1, limit.special]))
            patterns[draw(st.integers(0, len(patterns) - 1))] = edge
        sign = (1 << 8 * size - 1) * draw(st.booleans())
        plain = b"".join((pattern | sign).to_bytes(size, "little") for pattern in patterns)
        entries[f"t{number}"] = {
            "dtype": name, "shape": [len(patterns)], "data_offsets": [len(body), len(body) + len(plain)]
        }  # fmt: skip
        body += plain
    text = json.dumps(entries).encode() + b" " * draw(st.integers(0, 9))
    return len(text).to_bytes(8, "little") + text + bytes(body)


@settings(max_examples=300, deadline=None)
@given(data=organ_like(), lead=st.integers(0, 7))
def test_peaks_change_no_verdict(data: bytes, lead: int) -> None:
    with suppress(OrganNotFinite, OrganAbsurd):
        _check_file(data, lead=lead)


def test_what_the_peaks_never_saw_is_read() -> None:
    data = save({"w": torch.full((1000,), float("nan"))})
    with pytest.raises(OrganNotFinite):
        check_weights(
            check_header(BytesIO(data), len(data)), peaks=Peaks(),
            read_at=lambda offset, into: into.__setitem__(slice(None), data[offset : offset + len(into)]),
        )  # fmt: skip
