"""Adversary: a member who seals properly and puts something else than one organ inside the frame.

Powers: a full member with both signing keys; any lines, any lengths, any bytes. Lacks: nothing but honesty.
"""

from __future__ import annotations

from not_fed.age import BadContainer
from not_fed.envelope.checks import WaybillMismatch
from not_fed.envelope.frame import max_pad
from not_fed.envelope.open import OrganMismatch
from not_fed.errors import NotFedError, TrustError
from not_fed.keys.dsse import MalformedSigned, NewerFormat
from tests.support.attacks import assert_opens
from tests.support.trust import Forger, Parcel, assert_refused, build_container


def _assert_frames_refused(forger: Forger, frames: list[tuple[bytes, type[NotFedError]]]) -> None:
    """Each frame, sealed to the parcel's recipients, is refused; the honest frame, sealed by the same hand, opens."""
    parcel = forger.parcel
    for content, kind in frames:
        parcel.path.write_bytes(build_container(content, recipients=forger.to))
        assert_refused(parcel, kind)
    parcel.path.write_bytes(build_container(forger.plain, recipients=forger.to))
    assert_opens(parcel)


def test_a_frame_of_another_kind_is_refused(forger: Forger) -> None:
    """A12. Nothing, a text, three megabytes without a line feed, CRLF, an endless line: sealed in place of a frame.

    Powers: any member, sealing anything to others. Control: the honest frame, sealed by the same hand, opens.
    """
    plain = forger.plain
    _assert_frames_refused(forger, [
        (b"", BadContainer),
        (b"hello", BadContainer),
        (b"x" * 3_000_000, BadContainer),
        (plain.replace(b"not-fed.sealed/v1\n", b"not-fed.sealed/v1\r\n", 1), TrustError),
        (b"not-fed.sealed/v1\n" + b"x" * 70_000 + b"\n", BadContainer),
        (b"not-fed.sealed/v1\n" + plain.split(b"\n")[1] + b"\n" + b"x" * 2_000_000, BadContainer),
    ])  # fmt: skip


def test_a_frame_of_a_later_version_is_named_as_such(forger: Forger) -> None:
    """A89. The frame says v2, v10 or v1.1: refused as newer, never read as well as may be.

    Powers: any member, or an honest sender with a newer not-fed. Control: v1, sealed by the same hand, opens.
    """
    _assert_frames_refused(forger, [
        (forger.plain.replace(b"sealed/v1\n", b"sealed/" + version + b"\n", 1), NewerFormat)
        for version in (b"v2", b"v10", b"v1.1", b"v")
    ] + [(forger.plain.replace(b"sealed/v1\n", b"sealed/" + version + b"\n", 1), BadContainer)
         for version in (b"", b"V1", b"1", b"w1")])  # fmt: skip


def test_the_length_of_a_frame_is_settled_before_anything_is_written(forger: Forger) -> None:
    """A12. The frame is a byte shorter or longer than waybill and lines add up to.

    Powers: any member, sealing by hand. Control: the frame of the right length opens.
    """
    _assert_frames_refused(forger, [(forger.plain[:-1], WaybillMismatch), (forger.plain + b"\0", WaybillMismatch)])


def test_an_organ_other_than_the_signed_one_is_refused(forger: Forger, parcel: Parcel) -> None:
    """A12. The frame holds another organ than waybill and passport describe: one bit, shorter, longer, none.

    Powers: a recipient who seals again what it was sent. Control: the signed organ, sealed by the same hand, opens.
    """
    changed = forger.organ[:-1] + bytes([forger.organ[-1] ^ 1])
    forger.write(organ=changed)
    assert_refused(parcel, OrganMismatch)
    for organ in (forger.organ[:-1], forger.organ + b"\0", b""):
        forger.write(organ=organ)
        assert_refused(parcel, WaybillMismatch)
    forger.write()
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_no_bit_of_the_organ_can_be_exchanged_for_another(forger: Forger, parcel: Parcel) -> None:
    """Own. Each bit of the organ's header and of its first and last weights is flipped, the seal made anew each time.

    Powers: a recipient who seals again what it was sent. Control: with no bit flipped it opens.
    """
    size = len(forger.organ)
    for place in [*range(16), *range(100, size - 16, 37), *range(size - 16, size)]:
        changed = forger.organ[:place] + bytes([forger.organ[place] ^ 1 << place % 8]) + forger.organ[place + 1 :]
        forger.write(organ=changed)
        assert_refused(parcel, OrganMismatch)
    forger.write()
    assert_opens(parcel)


def test_padding_is_zero_and_bounded(forger: Forger, parcel: Parcel) -> None:
    """A13. Padding carries something else than zeros, is larger than its bound, or shorter than announced.

    Powers: a member who wants a hidden channel, or to fill disks. Control: zeros of an allowed length open.
    """
    forger.write(waybill=forger.waybill_with(pad=100), pad=b"\0" * 99 + b"\1")
    assert_refused(parcel, BadContainer)
    forger.write(waybill=forger.waybill_with(pad=100), pad=b"\1" + b"\0" * 99)
    assert_refused(parcel, BadContainer)
    forger.write(waybill=forger.waybill_with(pad=1_000_000), pad=bytes(1_000_000))
    assert_refused(parcel, WaybillMismatch)
    forger.write(waybill=forger.waybill_with(pad=100), pad=bytes(99))
    assert_refused(parcel, WaybillMismatch)
    forger.write(waybill=forger.waybill_with(pad=100), pad=bytes(100))
    assert parcel.open().organ.read_bytes() == parcel.organ  # control


def test_padding_stops_exactly_at_its_bound(forger: Forger, parcel: Parcel) -> None:
    """Own. A byte of padding more than allowed, over several megabytes of zeros, and unannounced zeros after the organ.

    Powers: a member who seals by hand. Control: exactly as much padding as is allowed opens.
    """
    bound = max_pad(len(forger.organ))
    forger.write(waybill=forger.waybill_with(pad=bound + 1), pad=bytes(bound + 1))
    assert_refused(parcel, WaybillMismatch)
    forger.write(pad=bytes(3_000_000))
    assert_refused(parcel, WaybillMismatch)
    forger.write(waybill=forger.waybill_with(pad=bound), pad=bytes(bound))
    assert_opens(parcel)


def test_lines_cannot_trade_places(forger: Forger) -> None:
    """Own. Passport and waybill trade places, one is doubled, left out, or replaced by an empty line.

    Powers: a recipient who seals again what it was sent. Control: in their order they open.
    """
    magic, waybill, passport = b"not-fed.sealed/v1", forger.waybill_line, forger.passport_line
    orders = (
        (magic, passport, waybill), (magic, waybill, waybill), (magic, passport, passport), (magic, waybill),
        (magic, b"", passport), (magic, waybill, b""), (magic, magic, waybill, passport), (waybill, passport),
        (b"", magic, waybill, passport),
    )  # fmt: skip
    _assert_frames_refused(forger, [(b"\n".join(lines) + b"\n" + forger.organ, TrustError) for lines in orders])


def test_a_size_that_overflows_or_exhausts_is_refused_before_writing(forger: Forger, parcel: Parcel) -> None:
    """Own. Waybill and passport agree on an organ of a terabyte, of 2^63 or 2^64 bytes, or of none at all.

    Powers: a member with both signing keys. Control: the true size, signed by the same hand, opens.
    """
    for size in (1 << 40, (1 << 40) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, 0, -1):
        organ = forger.waybill["organ"] | {"size_bytes": size}
        forger.rewrite(passport=forger.passport_with(organ_size_bytes=size), organ=organ)
        assert_refused(parcel, (WaybillMismatch, MalformedSigned))
    for pad in (1 << 40, (1 << 40) + 1, 1 << 63, 1 << 64, -1):
        forger.write(waybill=forger.waybill_with(pad=pad))
        assert_refused(parcel, (WaybillMismatch, MalformedSigned))
    forger.write()
    assert_opens(parcel)


def test_a_frame_inside_a_frame_is_no_organ(forger: Forger, parcel: Parcel) -> None:
    """Own. A sealed file, whole as it is, is signed and sealed as if it were an organ, hoping for a second unsealing.

    Powers: a member with both signing keys. Control: the organ itself, sealed by the same hand, opens.
    """
    inner = parcel.path.read_bytes()
    for content in (inner, forger.plain):
        forger.with_organ(content)
        error = assert_refused(parcel, TrustError)
        assert error.code == "organ-malformed"
    forger.with_organ(forger.organ)
    assert_opens(parcel)
