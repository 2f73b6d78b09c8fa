"""The tensor header reader against the real library: it reads whatever real checkpoints are made of."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from not_fed.envelope.finite import OrganNotFinite, check_finite
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
    assert finite.any()
    good = values[finite].contiguous()
    _check(good)
    for bad in values[~finite][:50]:
        with pytest.raises(OrganNotFinite):
            _check(torch.cat([good[:100].view(torch.uint8), bad.reshape(1).view(torch.uint8)]).view(DTYPES[dtype]))


def _check(values: torch.Tensor) -> None:
    data = save({"a": torch.zeros(3, dtype=torch.int64), "w": values})
    file = BytesIO(data)
    check_finite(file, check_header(file, len(data)))


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
    file = BytesIO(data)
    check_finite(file, check_header(file, len(data)))
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["w"]["dtype"] == "I32"
