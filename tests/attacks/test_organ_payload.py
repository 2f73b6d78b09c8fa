"""Adversary: a member who signs and seals properly, and whose organ is no organ, another organ, or a harmful one.

Powers: a full member with both signing keys; any bytes as organ. Lacks: nothing but honesty.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.envelope import Verified, new_passport, verify_sealed
from not_fed.envelope.finite import OrganNotFinite
from not_fed.envelope.open import OrganMalformed
from not_fed.errors import InputError
from tests.support.attacks import assert_opens
from tests.support.trust import FEDERATION, NOW, Forger, Parcel, assert_refused, organ_bytes, tensor_file

ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
BOTH = {"layers.0.w": ONE, "layers.1.w": ONE | {"data_offsets": [4, 8]}}


def verify(parcel: Parcel) -> Verified:
    """As the hub, writing nothing."""
    federation = parcel.federation
    return verify_sealed(parcel.path, roster=federation.roster, now=NOW, label=None, opener=federation.hub.opener)


def entries(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The metadata of an honest organ."""
    honest = organ_bytes(manifest=changes)
    length = int.from_bytes(honest[:8], "little")
    return {"__metadata__": canonical.loads(honest[8 : 8 + length], where="test")["__metadata__"]}


def assert_organs_refused(forger: Forger, *organs: bytes) -> None:
    """Each, signed and sealed by the clinic, is refused by open and by verify; the least that is an organ opens."""
    parcel = forger.parcel
    for organ in organs:
        forger.with_organ(organ)
        assert_refused(parcel, OrganMalformed)
        with pytest.raises(OrganMalformed):
            verify(parcel)
    least = tensor_file(entries() | BOTH, bytes(8))
    forger.with_organ(least)
    assert assert_opens(parcel, organ=least).sender == "clinic"  # control: the least that is an organ


def test_a_signed_pickle_is_no_organ(forger: Forger) -> None:
    """A45. A pickle that would run code when loaded, in several protocols, is signed and sealed as an organ.

    Powers: a member with both signing keys. Control: a small true organ by the same hand opens.
    """
    command = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
    assert_organs_refused(
        forger, b"\x80\x04\x95" + bytes(100), b"\x80\x02" + command, command, b"\x80\x05" + command + bytes(500)
    )


def test_a_zip_or_a_script_is_no_organ(forger: Forger) -> None:
    """A46. A zip archive, a script, an archive behind an organ's last byte: signed and sealed as an organ.

    Powers: a member with both signing keys. Control: a small true organ by the same hand opens.
    """
    least, end = tensor_file(entries() | BOTH, bytes(8)), b"PK\x05\x06" + bytes(18)
    assert_organs_refused(forger, b"PK\x03\x04" + bytes(100), b"#!/bin/sh\n" + bytes(100), least + end, least + least)


def test_a_tensor_file_without_our_manifest_is_no_organ(forger: Forger) -> None:
    """Own. A good safetensors file with no manifest, an empty one, a list, a second metadata key or a later format.

    Powers: a member with both signing keys. Control: the same tensors with an organ's manifest open.
    """
    honest = entries()["__metadata__"]
    assert_organs_refused(
        forger,
        tensor_file(BOTH, bytes(8)),
        tensor_file({"__metadata__": {"not-fed": "{}"}} | BOTH, bytes(8)),
        tensor_file({"__metadata__": {"not-fed": "[]"}} | BOTH, bytes(8)),
        tensor_file({"__metadata__": {"not-fed": honest["not-fed"] + " x"}} | BOTH, bytes(8)),
        tensor_file({"__metadata__": honest | {"format": "pt"}} | BOTH, bytes(8)),
        tensor_file(entries(extra=1) | BOTH, bytes(8)),
        tensor_file(entries(blood_type={}) | BOTH, bytes(8)),
        tensor_file(entries(blood_type={"family": "\x1b[2J"}) | BOTH, bytes(8)),
        tensor_file(entries(span=[2, 2]) | BOTH, bytes(8)),
        tensor_file(entries(span=[0, 65_536]) | BOTH, bytes(8)),
        tensor_file(entries(base_sha256="AB" * 32) | BOTH, bytes(8)),
        tensor_file(entries(parents=["x"]) | BOTH, bytes(8)),
    )


def test_an_organ_of_a_later_format_is_refused(forger: Forger) -> None:
    """A89. The organ's manifest says format 2, or another format altogether.

    Powers: an honest author with a newer not-fed, or one who hopes for best effort. Control: format 1 opens.
    """
    assert_organs_refused(
        forger,
        tensor_file(entries(format="not-fed.organ/2") | BOTH, bytes(8)),
        tensor_file(entries(format="not-fed.organ/1.0") | BOTH, bytes(8)),
        tensor_file(entries(format="not-fed.liver/1") | BOTH, bytes(8)),
    )


def test_tensors_lie_within_the_span_and_no_layer_is_missing(forger: Forger) -> None:
    """A47. With the right digest: tensors outside the span, a layer without any, the output head, the embedding.

    Powers: a member with both signing keys. Control: a tensor for each layer of the span opens.
    """
    second = ONE | {"data_offsets": [4, 8]}
    assert_organs_refused(
        forger,
        tensor_file(entries() | {"layers.0.w": ONE, "layers.2.w": second}, bytes(8)),
        tensor_file(entries() | {"layers.0.w": ONE}, bytes(4)),
        tensor_file(entries() | {"layers.0.w": ONE, "lm_head.weight": second}, bytes(8)),
        tensor_file(entries() | {"layers.0.w": ONE, "embed_tokens.weight": second}, bytes(8)),
        tensor_file(entries() | {"layers.0.w": ONE, "layers.99999.w": second}, bytes(8)),
        tensor_file(entries() | {"layers.0.w": ONE, "layers.w": second}, bytes(8)),
        tensor_file(entries() | {"layers.0.w": ONE, "layers.01x.w": second}, bytes(8)),
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_weights_that_are_not_numbers_are_refused(forger: Forger, parcel: Parcel, dtype: str, value: float) -> None:
    """A48. One weight anywhere is NaN or infinite, in a file of the right digest, to ruin whatever it is averaged with.

    Powers: a member with both signing keys. Control: the same organ with a large finite weight there opens.
    """
    for place in (0, 11, 23):
        forger.with_organ(_organ(dtype, place, value))
        assert_refused(parcel, OrganNotFinite)
        with pytest.raises(OrganNotFinite):
            verify(parcel)
    forger.with_organ(_organ(dtype, 0, 1e4))
    assert parcel.open().sender == "clinic"  # control


def _organ(dtype: str, place: int, value: float) -> bytes:
    numbers = [0.5] * 24
    numbers[place] = value
    if dtype == "BF16":
        data = b"".join(struct.pack("<f", number)[2:] for number in numbers)
    else:
        data = struct.pack(f"<24{ {'F32': 'f', 'F16': 'e', 'F64': 'd'}[dtype] }", *numbers)
    half = len(data) // 2
    return tensor_file(entries() | {
        "layers.0.w": {"dtype": dtype, "shape": [12], "data_offsets": [0, half]},
        "layers.1.w": {"dtype": dtype, "shape": [12], "data_offsets": [half, len(data)]},
    }, data)  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("F32", 0x7F800001), ("F32", 0xFFC00000), ("F32", 0x7FFFFFFF), ("F16", 0xFC01), ("BF16", 0xFF81),
     ("F64", 0x7FF0 << 48), ("F8_E5M2", 0x7D), ("F8_E5M2", 0xFC), ("F8_E4M3", 0x7F), ("F8_E4M3", 0xFF),
     ("F8_E8M0", 0xFF)],
    ids=lambda value: value if isinstance(value, str) else hex(value),
)  # fmt: skip
def test_every_bit_pattern_of_nan_is_found(forger: Forger, parcel: Parcel, dtype: str, bits: int) -> None:
    """Own. Signalling, negative and unusual NaNs, and those of eight-bit floats, which libraries may overlook.

    Powers: a member with both signing keys, any bits as weights. Control: the largest finite pattern opens.
    """
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
    fields = {
        name: {"dtype": dtype, "shape": [2], "data_offsets": [place * 2 * size, (place + 1) * 2 * size]}
        for place, name in enumerate(BOTH)
    }
    for place in range(4):
        words = [0] * 4
        words[place] = bits
        forger.with_organ(tensor_file(entries() | fields, b"".join(word.to_bytes(size, "little") for word in words)))
        assert_refused(parcel, OrganNotFinite)
    fine = tensor_file(entries() | fields, bytes(4 * size))
    forger.with_organ(fine)
    assert_opens(parcel, organ=fine)


def test_what_is_no_organ_gets_no_passport(tmp_path: Path) -> None:
    """Own. A passport is asked for over an empty file, a pickle, or an organ that is cut short.

    Powers: hands a file to whoever signs passports. Control: a whole organ gets one.
    """
    for number, data in enumerate((b"", b"\x80\x04pickle", organ_bytes()[:-1])):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        with pytest.raises(InputError):
            new_passport(path, author="clinic", federation=FEDERATION, round_number=0, now=NOW)
    path.write_bytes(organ_bytes())
    assert new_passport(path, author="clinic", federation=FEDERATION, round_number=0, now=NOW).span == (2, 4)
