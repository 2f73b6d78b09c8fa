"""Sealing and opening as functions: every size, bounded memory, padding, what is written where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from not_fed.age.stream import CHUNK_BYTES
from not_fed.envelope import MemorySeen, passport_path, seal_organ, verify_sealed
from not_fed.envelope.frame import padme
from tests.support.trust import FEDERATION, NOW, Federation, Forger, Parcel, days, listing, organ_bytes


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Clinic, hub and lab."""
    return Federation.make(tmp_path_factory.mktemp("federation") / "roster")


@pytest.mark.parametrize(
    "floats", [2, 24, 1000, CHUNK_BYTES // 8 - 2000, CHUNK_BYTES // 8, CHUNK_BYTES // 4, 131_072, 200_000]
)
def test_an_organ_of_any_size_comes_out_as_it_went_in(tmp_path: Path, federation: Federation, floats: int) -> None:
    parcel = Parcel(tmp_path, federation, organ=organ_bytes(floats=floats))
    assert parcel.open(label=parcel.sealed.label).organ.read_bytes() == parcel.organ


@pytest.mark.parametrize("shift", range(-3, 4))
def test_a_frame_that_ends_at_a_chunks_border_opens(tmp_path: Path, federation: Federation, shift: int) -> None:
    """The last chunk must not be empty: around the border, padding chooses the exact size."""
    parcel = Parcel(tmp_path, federation, organ=organ_bytes(floats=30_000))
    forger = Forger(parcel)
    pad = 4 * CHUNK_BYTES + shift - len(forger.plain) - 400
    for _ in range(3):  # the waybill's own length depends on the number of digits
        line = forger.waybill_with(pad=pad)
        pad += 4 * CHUNK_BYTES + shift - (len(forger.plain) - len(forger.waybill_line) + len(line) + pad)
    forger.write(waybill=forger.waybill_with(pad=pad), pad=bytes(pad))
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_everything_about_it_is_told(tmp_path: Path, federation: Federation) -> None:
    parcel = Parcel(tmp_path, federation)
    opened = parcel.open()
    assert (opened.sender, opened.author, opened.organ_sha256) == ("clinic", "clinic", parcel.sealed.organ_sha256)
    assert opened.waybill_key == f"clinic/{parcel.sealed.waybill_id}"
    assert opened.expires == parcel.sealed.expires == NOW + days(14)
    assert passport_path(opened.organ).read_bytes() == opened.passport_bytes + b"\n" == parcel.passport_line + b"\n"
    verified = verify_sealed(parcel.path, roster=federation.roster, now=NOW, label=parcel.sealed.label)
    assert (verified.sender, verified.recipients, verified.round_number) == ("clinic", ("hub", "lab"), 3)
    assert (verified.author, verified.dp, verified.passport) == (None, None, None)


def test_verifying_writes_nothing(tmp_path: Path, federation: Federation) -> None:
    parcel = Parcel(tmp_path, federation)
    before = listing(tmp_path)
    for opener in (None, federation.hub.opener):
        verify_sealed(parcel.path, roster=federation.roster, now=NOW, label=parcel.sealed.label, opener=opener)
    assert listing(tmp_path) == before


def test_an_opening_that_was_cut_off_after_the_passport_can_be_repeated(tmp_path: Path, federation: Federation) -> None:
    parcel = Parcel(tmp_path, federation)
    parcel.open().organ.unlink()
    assert passport_path(tmp_path / "opened.organ").exists()
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_a_waybill_is_remembered_only_when_the_organ_was_written(tmp_path: Path, federation: Federation) -> None:
    parcel, seen = Parcel(tmp_path, federation), MemorySeen()
    (tmp_path / "opened.organ").write_bytes(b"in the way")
    with pytest.raises(Exception, match=r"opened\.organ"):
        parcel.open(seen=seen)
    (tmp_path / "opened.organ").unlink()
    assert parcel.open(seen=seen).sender == "clinic"


def test_padding_hides_the_size(tmp_path: Path, federation: Federation) -> None:
    """Organs of near sizes give sealed files of one size, apart from digits in the signed lines."""
    sizes = set()
    for number, floats in enumerate((20_000, 20_010, 20_050)):
        (tmp_path / str(number)).mkdir()
        parcel = Parcel(tmp_path / str(number), federation, organ=organ_bytes(floats=floats))
        sealed = seal_organ(
            parcel.organ_path, passport=parcel.passport_line, sender=federation.clinic.signer, recipients=["hub"],
            roster=federation.roster, federation=FEDERATION, round_number=3, out=tmp_path / f"{number}.sealed", now=NOW,
            pad=True,
        )  # fmt: skip
        sizes.add(sealed.size_bytes)
        parcel.path = sealed.path
        assert parcel.open().organ.read_bytes() == parcel.organ
    assert max(sizes) - min(sizes) < 20


@pytest.mark.parametrize("size", [1, 2, 100, 4095, 1_000_000, 499_876_760, 1 << 40])
def test_padme_adds_at_most_an_eighth(size: int) -> None:
    assert 0 <= padme(size) <= size * 0.12 + 1
    assert padme(size + padme(size)) == 0


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A 64 MB organ is sealed, opened and verified within 40 MB above what importing takes."""
    script = """
import sys
from tests.support.trust import *
from not_fed.envelope import verify_sealed
import numpy

def peak():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])

folder, size = Path(sys.argv[1]), 32 << 20
federation = Federation.make(folder / 'roster')
small = organ_bytes()
entries = canonical.loads(small[8 : 8 + int.from_bytes(small[:8], 'little')], where='test')
for place, name in enumerate(sorted(key for key in entries if key != '__metadata__')):
    entries[name] = {'dtype': 'F32', 'shape': [size // 4], 'data_offsets': [place * size, (place + 1) * size]}
with open(folder / 'o', 'wb') as file:
    file.write(tensor_file(entries, b''))
    for _ in range(64):
        file.write(bytes(1 << 20))
passport = new_passport(folder / 'o', author='clinic', federation=FEDERATION, round_number=3, now=NOW)
line = issue_passport(passport, signer=federation.clinic.signer)
more = {'roster': federation.roster, 'now': NOW}
before = peak()
seal_organ(folder / 'o', passport=line, sender=federation.clinic.signer, recipients=['hub'], federation=FEDERATION,
           round_number=3, out=folder / 's', **more)
open_organ(folder / 's', opener=federation.hub.opener, out=folder / 'x', **more)
verify_sealed(folder / 's', label=None, opener=federation.hub.opener, **more)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert int(done.stdout) < 40 * 1024, done.stdout


def test_the_sealed_file_opens_by_the_documented_recovery(tmp_path: Path, federation: Federation) -> None:
    """docs/format.md: decrypt with age alone, drop three lines, and the organ is there."""
    from not_fed.age import decrypt

    parcel = Parcel(tmp_path, federation)
    plain = decrypt(parcel.path.read_bytes(), identity=federation.hub.opener.identity)
    assert plain.split(b"\n", 3)[3] == parcel.organ
