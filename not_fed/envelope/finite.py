"""Weights that are numbers: no NaN, no infinity. Streamed, on bit patterns, without a tensor library."""

from __future__ import annotations

from collections.abc import Mapping

from not_fed.envelope.header import ITEM_BYTES, Readable, TensorHeader
from not_fed.errors import TrustError

_BLOCK_BYTES = 1 << 20
# A float is not finite when all these bits, its exponent, are set. F8_E4M3 has no infinity; its NaN sets seven bits.
_EXPONENT: Mapping[str, int] = {
    "F64": 0x7FF0_0000_0000_0000, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C, "F8_E4M3": 0x7F,
    "F8_E8M0": 0xFF,
}  # fmt: skip


class OrganNotFinite(TrustError):
    """The organ contains NaN or infinity, which would destroy whatever it is averaged with."""

    code = "organ-not-finite"


def check_finite(file: Readable, header: TensorHeader, *, where: str = "organ") -> None:
    """Read all tensors from `file`, which stands at the data, in constant memory.

    Raises:
        OrganNotFinite: naming the first tensor with a NaN or an infinity. Whole-number tensors pass.
    """
    import numpy as np

    for name, entry in sorted(header.tensors.items(), key=lambda item: item[1].begin):
        mask = _EXPONENT.get(entry.dtype)
        unsigned = np.dtype(f"<u{ITEM_BYTES[entry.dtype]}")
        for start in range(entry.begin, entry.end, _BLOCK_BYTES):
            block = file.read(min(_BLOCK_BYTES, entry.end - start))
            if mask is None:
                continue
            bits = np.frombuffer(block, dtype=unsigned)
            if ((bits & unsigned.type(mask)) == mask).any():
                raise OrganNotFinite(
                    where=f"{where}, tensor {name}", expected="finite numbers", got="NaN or infinity",
                    hint="nothing was written; tell the author",
                )  # fmt: skip
