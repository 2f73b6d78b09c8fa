"""Faults of the frame: its lines, its lengths, its padding."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.second_writer import organ_file
from tests.support.vector_cases.base import Change, SealedCase, case, swap

DAMAGED, MISMATCH, NEWER = "container-damaged", "waybill-mismatch", "newer-format"
ORGAN = organ_file()


def cases() -> Iterator[SealedCase]:
    """Step 6, and the lengths of step 8."""
    for name, about, code, change in FRAMES:
        yield case(f"frame-{name}", about, code, edit_plain=change)
    yield case(
        "frame-padding-missing", "The waybill speaks of padding.", MISMATCH, edit_plain=lambda p: p[:-40], pad=40
    )
    yield case("frame-padding-not-zero", "One bit in it.", DAMAGED, edit_plain=lambda p: p[:-1] + b"\x01", pad=40)
    yield case("frame-padding-above-its-limit", "A byte more than may be.", MISMATCH, pad=len(ORGAN) // 4 + 4097)


def line(number: int, plain: bytes) -> int:
    """Where a line of the frame begins."""
    return 0 if number == 0 else plain.index(b"\n", line(number - 1, plain)) + 1


FRAMES: list[tuple[str, str, str, Change]] = [
    ("empty", "An empty payload.", DAMAGED, lambda p: b""),
    ("not-a-frame", "An age file with something else inside.", DAMAGED, lambda p: b"hello\n" * 40),
    ("newer-version", "not-fed.sealed/v2.", NEWER, swap("/v1\n", "/v2\n")),
    ("crlf", "The first line ends with CR LF.", NEWER, swap("/v1\n", "/v1\r\n")),
    ("first-line-too-long", "26 bytes before the first LF.", DAMAGED, swap("/v1\n", "/v1234567890\n")),
    ("first-line-alone", "Nothing after the first line.", DAMAGED, lambda p: p[: line(1, p)]),
    ("waybill-line-too-long", "65,537 bytes.", DAMAGED, lambda p: p[: line(1, p)] + b" " * 65_537 + b"\n"),
    ("waybill-without-end", "The payload ends within it.", DAMAGED, lambda p: p[:2000]),
    ("passport-line-too-long", "1,048,577 bytes.", DAMAGED, lambda p: p[: line(2, p)] + b" " * 1_048_577 + b"\n"),
    ("passport-without-end", "The payload ends within it.", DAMAGED, lambda p: p[: line(2, p) + 2000]),
    ("lines-swapped", "The passport first.", "signed-malformed",
     lambda p: p[: line(1, p)] + p[line(2, p) : line(3, p)] + p[line(1, p) : line(2, p)] + p[line(3, p) :]),
    ("organ-cut", "A byte of the organ is missing.", MISMATCH, lambda p: p[:-1]),
    ("organ-longer", "A byte more than the waybill says.", MISMATCH, lambda p: p + b"\0"),
    ("organ-not-the-authors", "Another byte in the organ.", "organ-mismatch", lambda p: p[:-1] + bytes([p[-1] ^ 1])),
]  # fmt: skip
