"""Adversary: a member who signs properly and seals properly, and lies about the organ or puts something else inside.

Powers: a full member with both signing keys; any bytes as organ. Lacks: nothing but honesty.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.age import BadContainer
from not_fed.envelope import Expectation, Verified, verify_sealed
from not_fed.envelope.checks import BaseNotExpected, EpsilonRefused, OrganRecalled, OtherSpan, WaybillMismatch
from not_fed.envelope.finite import OrganNotFinite
from not_fed.envelope.open import OrganMalformed, OrganMismatch
from not_fed.errors import NotFedError
from not_fed.trust.roster import recall_organ
from tests.support.trust import DP, NOW, Federation, Forger, Parcel, assert_refused, organ_bytes, tensor_file


def verify(parcel: Parcel) -> Verified:
    """As the hub, writing nothing."""
    federation = parcel.federation
    return verify_sealed(parcel.path, roster=federation.roster, now=NOW, label=None, opener=federation.hub.opener)


def test_an_organ_other_than_the_signed_one_is_refused(parcel: Parcel) -> None:
    """Same length, one bit; shorter; longer."""
    forger = Forger(parcel)
    changed = forger.organ[:-1] + bytes([forger.organ[-1] ^ 1])
    forger.write(organ=changed)
    assert_refused(parcel, OrganMismatch)
    for organ in (forger.organ[:-1], forger.organ + b"\0", b""):
        forger.write(organ=organ)
        assert_refused(parcel, WaybillMismatch)
    forger.write()
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_padding_is_zero_and_bounded(parcel: Parcel) -> None:
    """Padding is no channel for something else, and no way to fill disks."""
    forger = Forger(parcel)
    forger.write(waybill=forger.waybill_with(pad=100), pad=b"\0" * 99 + b"\1")
    assert_refused(parcel, BadContainer)
    forger.write(waybill=forger.waybill_with(pad=1_000_000), pad=bytes(1_000_000))
    assert_refused(parcel, WaybillMismatch)
    forger.write(waybill=forger.waybill_with(pad=100), pad=bytes(99))
    assert_refused(parcel, WaybillMismatch)
    forger.write(waybill=forger.waybill_with(pad=100), pad=bytes(100))
    assert parcel.open().organ.read_bytes() == parcel.organ  # control


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_weights_that_are_not_numbers_are_refused(parcel: Parcel, dtype: str, value: float) -> None:
    """One NaN or infinity anywhere, in a file of the right digest."""
    forger = Forger(parcel)
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
    return tensor_file(_entries() | {
        "layers.0.w": {"dtype": dtype, "shape": [12], "data_offsets": [0, half]},
        "layers.1.w": {"dtype": dtype, "shape": [12], "data_offsets": [half, len(data)]},
    }, data)  # fmt: skip


def _entries(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """The metadata of an honest organ."""
    honest = organ_bytes(manifest=changes)
    length = int.from_bytes(honest[:8], "little")
    return {"__metadata__": canonical.loads(honest[8 : 8 + length], where="test")["__metadata__"]}


def test_what_is_signed_must_still_be_an_organ(parcel: Parcel) -> None:
    """A pickle, a zip, a script, a bare safetensors file, tensors outside the span, a layer without tensors."""
    forger = Forger(parcel)
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    both = {"layers.0.w": one, "layers.1.w": one | {"data_offsets": [4, 8]}}
    for organ in (
        b"\x80\x04\x95" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"#!/bin/sh\n" + bytes(100),
        tensor_file(both, bytes(8)),
        tensor_file({"__metadata__": {"not-fed": "{}"}} | both, bytes(8)),
        tensor_file({"__metadata__": {"not-fed": "[]"}} | both, bytes(8)),
        tensor_file({"__metadata__": _entries()["__metadata__"] | {"format": "pt"}} | both, bytes(8)),
        tensor_file(_entries() | {"layers.0.w": one, "layers.2.w": one | {"data_offsets": [4, 8]}}, bytes(8)),
        tensor_file(_entries() | {"layers.0.w": one}, bytes(4)),
        tensor_file(_entries() | {"layers.0.w": one, "lm_head.weight": one | {"data_offsets": [4, 8]}}, bytes(8)),
        tensor_file(_entries(format="not-fed.organ/2") | both, bytes(8)),
    ):
        forger.with_organ(organ)
        assert_refused(parcel, OrganMalformed)
    forger.with_organ(tensor_file(_entries() | both, bytes(8)))
    assert parcel.open().sender == "clinic"  # control: the least that is an organ


def test_a_passport_that_contradicts_its_organ_is_refused(parcel: Parcel) -> None:
    """Base, span and family in the passport are those in the file itself."""
    forger = Forger(parcel)
    for lie in ({"base_sha256": "99" * 32}, {"span": [3, 5]}, {"family": "mistral"}):
        forger.rewrite(passport=forger.passport_with(**lie))
        assert_refused(parcel, OrganMismatch)


@pytest.mark.parametrize(
    ("expect", "kind", "exit_code"),
    [
        (Expectation(base_sha256="99" * 32), BaseNotExpected, 5),
        (Expectation(span=(2, 5)), OtherSpan, 5),
        (Expectation(family="mistral"), OtherSpan, 5),
        (Expectation(max_epsilon=3.0), EpsilonRefused, 7),
    ],
    ids=["base", "span", "family", "epsilon"],
)
def test_what_the_caller_expects_is_checked_before_anything_is_written(
    parcel: Parcel, expect: Expectation, kind: type[NotFedError], exit_code: int
) -> None:
    other = parcel.folder / "dp"
    other.mkdir()
    private = Parcel(other, parcel.federation, organ=organ_bytes(dp=DP))
    assert assert_refused(private, kind, expect=expect).exit_code == exit_code
    fitting = Expectation(base_sha256="ab" * 32, span=(2, 4), family="llama", max_epsilon=3.2, round_number=3)
    opened = private.open(expect=fitting)  # control
    assert opened.passport.dp is not None
    assert opened.passport.dp.mechanism.noise_multiplier == 1.1


def test_no_claim_of_privacy_is_weaker_than_any(parcel: Parcel) -> None:
    assert "no differential privacy" in assert_refused(parcel, EpsilonRefused, expect=Expectation(max_epsilon=8.0)).got


def test_a_recalled_organ_is_refused_offline(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "roster")
    (tmp_path / "work").mkdir()
    parcel = Parcel(tmp_path / "work", federation)
    assert verify(parcel).passport  # control
    roster = recall_organ(
        federation.folder, organ_sha256=parcel.passport.organ_sha256, reason="trained on the wrong records",
        steward=federation.steward, now=NOW,
    )  # fmt: skip
    parcel.federation = Federation(**{**vars(federation), "roster": roster})
    assert "wrong records" in assert_refused(parcel, OrganRecalled).hint
