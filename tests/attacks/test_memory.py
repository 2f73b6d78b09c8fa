"""Adversary: a relay, or a member of the federation, who wants the reader's memory rather than its trust.

Powers: alters what was sealed; as a member, signs and seals whatever it likes, with any sizes declared.
Always: a typed refusal, within 64 MiB above what was resident before; how it is measured: tests/support/memory.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from not_fed import files
from not_fed.age import stream
from not_fed.envelope import verify_sealed
from not_fed.envelope.finite import MAX_WEIGHT, OrganAbsurd
from not_fed.envelope.label import LabelMismatch
from not_fed.reading import TypedReads
from tests.support.attacks import assert_opens
from tests.support.memory import CASES
from tests.support.trust import NOW, Forger, Parcel, assert_refused, organ_bytes, tensor_file

LIMIT_MIB = 64


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Refusal and extra memory of each case, from a process in which nobody else used memory before."""
    folder = tmp_path_factory.mktemp("memory")
    done = subprocess.run([sys.executable, "-m", "tests.support.memory", str(folder)], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    cases: dict[str, Any] = json.loads(done.stdout)
    return cases


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith("honest")])
def test_a_hostile_file_costs_little_memory(found: dict[str, Any], case: str) -> None:
    """Own. Gigabytes declared, lines and headers without an end, a million lists in a header, hundreds of recipients.

    Powers: signs as a member and seals it, or is a relay and writes what it likes. Control: an honest organ opens, and
    so does one with as many tensors as there may be, within the same bound.
    """
    verdict, extra_mib = found[case]
    assert "opened" not in verdict
    assert extra_mib < LIMIT_MIB, f"{case}: {extra_mib:.0f} MiB"
    for control in (name for name in CASES if name.startswith("honest")):
        assert "opened" in found[control][0]
        assert 0 < found[control][1] < LIMIT_MIB


def test_a_mutation_costs_little_memory(found: dict[str, Any]) -> None:
    """Own. A sealed organ of eight megabytes, cut, turned, doubled, spliced at fifty-eight places.

    Powers: a relay that changes any byte. Control: the honest organ opens.
    """
    verdict, extra_mib, count = found["mutations"]
    assert count >= 50
    assert "opened" not in verdict
    assert extra_mib < LIMIT_MIB
    assert found["honest"][0] == "opened"


def test_a_label_of_another_size_is_refused_before_the_file_is_hashed(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. Sixty gigabytes of nothing behind a sealed file: its label says how large it is, which is looked at first.

    Powers: a relay that makes the file longer, to keep a reader's processor busy. Control: the honest file verifies.
    """
    roster, label = parcel.federation.roster, parcel.sealed.label
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=label).sender == "clinic"
    os.truncate(parcel.path, 60 << 30)
    read = 0

    class Counting(TypedReads):
        def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401
            nonlocal read
            read += (count := super().readinto(buffer))
            return count

    monkeypatch.setattr(files, "TypedReads", Counting)
    with pytest.raises(LabelMismatch):
        verify_sealed(parcel.path, roster=roster, now=NOW, label=label)
    assert read == 0


def test_thousands_of_one_byte_tensors_are_decrypted_once_more_and_no_oftener(
    parcel: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. Two thousand tensors of one byte each, none of which can be cleared while it passes: all are read again.

    Powers: an enrolled author who signs and seals its own organ, to keep a reader's processor busy. Control: the organ
    is well formed, and verifies after its chunks were decrypted twice.
    """
    count, large = 2000, 2 << 20
    entries = {f"layers.{place % 2}.a{place}": ("F8_E5M2", place, place + 1) for place in range(large, large + count)}
    entries |= {"layers.0.z": ("I8", 0, large), "layers.1.z": ("I8", large + count, 2 * large + count)}
    Forger(parcel).with_organ(organ := tensors(entries, bytes(2 * large + count)))
    decrypted = 0

    class Counting:
        def __init__(self, key: bytes) -> None:
            self._cipher = ChaCha20Poly1305(key)

        def decrypt_into(self, *args: Any) -> int:  # noqa: ANN401
            nonlocal decrypted
            decrypted += 1
            return self._cipher.decrypt_into(*args)

    monkeypatch.setattr(stream, "ChaCha20Poly1305", Counting)
    roster, hub = parcel.federation.roster, parcel.federation.hub
    found = verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener)
    assert found.sender == "clinic"
    chunks = -(-parcel.path.stat().st_size // stream.CHUNK_BYTES)
    assert len(organ) // stream.CHUNK_BYTES <= decrypted <= 2 * chunks


def tensors(entries: dict[str, tuple[str, int, int]], data: bytes) -> bytes:
    """An organ with these tensors, under the manifest of the usual one."""
    usual = organ_bytes()
    said = json.loads(usual[8 : 8 + int.from_bytes(usual[:8], "little")])
    header = {
        name: {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (dtype, begin, end) in entries.items()
    }
    return tensor_file(header | {"__metadata__": said["__metadata__"]}, data)


@pytest.mark.parametrize("weight", [MAX_WEIGHT, -MAX_WEIGHT, 3e38], ids=["bound", "below", "largest"])
def test_an_absurd_norm_is_refused(parcel: Parcel, weight: float) -> None:
    """A48. The author signs weights that are finite, and so large that any mean with them is theirs.

    Powers: an enrolled author who signs and seals its own organ. Control: weights just within the bound open.
    """
    forger = Forger(parcel)
    forger.with_organ(organ := organ_bytes(value=MAX_WEIGHT - 100))
    assert_opens(parcel, organ=organ)
    forger.with_organ(organ_bytes(value=weight))
    error = assert_refused(parcel, OrganAbsurd)
    assert f"{MAX_WEIGHT:,}" in error.expected
