"""How much memory a hostile file costs: `python -m tests.support.memory FOLDER`, a process of its own.

Each case is made in one child and looked at in another, whose peak of resident memory starts at nothing. Prints one
JSON object: case -> [error code or "opened", extra MiB], the worst of opening and verifying.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from not_fed.age import HybridIdentity
from not_fed.bench.harness import peak_memory_mb, reset_peak_memory
from not_fed.envelope import verify_sealed
from not_fed.errors import NotFedError
from tests.support.trust import NOW, Federation, Forger, Parcel, build_container, organ_bytes, tensor_file

LISTS = b"[" + b"[]," * 240_000 + b"[]]"  # 720 KB that become 15 MB; a signed line in base64 holds no more
GIB = 1 << 30


def _sized(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _many_tensors(count: int) -> bytes:
    """As many tensors as an organ may have, and honest."""
    small = organ_bytes()
    entries = json.loads(small[8 : 8 + int.from_bytes(small[:8], "little")])
    entries = {"__metadata__": entries["__metadata__"]}
    for number in range(count):
        place = [number * 4, number * 4 + 4]
        entries[f"layers.{number % 2}.w{number}"] = {"dtype": "F32", "shape": [1], "data_offsets": place}
    return tensor_file(entries, bytes(4 * count))


def _lists_as_passport(parcel: Parcel) -> None:
    forger = Forger(parcel)
    forger.rewrite(passport=forger.sign(LISTS, "application/vnd.in-toto+json"))


def _sparse(parcel: Parcel) -> None:
    os.truncate(parcel.path, 60 * GIB)


def _raw(data: bytes) -> Callable[[Parcel], None]:
    return lambda parcel: _write(parcel, data)


def _write(parcel: Parcel, data: bytes) -> None:
    parcel.path.write_bytes(data)


def _frame(plain: bytes) -> Callable[[Parcel], None]:
    return lambda parcel: _write(parcel, build_container(plain, recipients=Forger(parcel).to))


def _organ(data: bytes) -> Callable[[Parcel], None]:
    return lambda parcel: Forger(parcel).with_organ(data)


def _recipients(parcel: Parcel) -> None:
    others = [HybridIdentity(os.urandom(32)).recipient for _ in range(248)]
    Forger(parcel).write(to=[*Forger(parcel).to, *others])


def _declared(parcel: Parcel) -> None:
    forger = Forger(parcel)
    size = {"sha256": "ab" * 32, "size_bytes": 60 * GIB}
    passport = forger.sign(
        forger.passport | {"predicate": forger.passport["predicate"] | {"organ_size_bytes": 60 * GIB},
                           "subject": [{"name": "organ", "digest": {"sha256": "ab" * 32}}]},
        "application/vnd.in-toto+json",
    )  # fmt: skip
    forger.rewrite(passport=passport, organ=size)
    os.truncate(parcel.path, 60 * GIB)


CASES: Mapping[str, Callable[[Parcel], None]] = {
    "honest": lambda parcel: None,
    "honest, as many tensors as there may be": _organ(_many_tensors(16_384)),
    "more tensors than there may be": _organ(_many_tensors(16_385)),
    "a tensor header of 2^63 bytes": _organ((1 << 63).to_bytes(8, "little") + b"{}"),
    "a tensor header of 4 MiB, a million lists": _organ(_sized(b'{"a":[' + b"[]," * 1_398_000 + b"[]]}")),
    "a tensor header of 4 MiB, a million objects": _organ(_sized(b'{"a":[' + b"{}," * 1_398_000 + b"{}]}")),
    "a tensor header of 4 MiB, two million numbers": _organ(_sized(b'{"a":[' + b"9," * 2_097_000 + b"9]}")),
    "a tensor header of 4 MiB, an emoji in it": _organ(_sized(b'{"a":"' + b"x" * 4_194_200 + "😀".encode() + b'"}')),
    "a tensor header of 16 MiB": _organ(_sized(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}")),
    "60 GiB, as the signed lines say": _declared,
    "60 GiB of nothing behind it": _sparse,
    "248 recipients too many": _recipients,
    "a passport of 240,000 lists, signed": _lists_as_passport,
    "a waybill line that does not end": _frame(b"not-fed.sealed/v1\n" + b"x" * (32 << 20)),
    "a passport line that does not end": _frame(b"not-fed.sealed/v1\n{}\n" + b"x" * (32 << 20)),
    "a waybill of lists": _frame(b"not-fed.sealed/v1\n[" + b"[]," * 21_000 + b"[]]\n{}\n"),
    "an age header that does not end": _raw(b"age-encryption.org/v1\n" + b"-> a\nAAAA\n" * 3_000_000),
    "an age header of one line": _raw(b"age-encryption.org/v1\n-> " + b"a" * (32 << 20)),
    "an age header of words": _raw(b"age-encryption.org/v1\n->" + b" a" * 4000 + b"\nAAAA\n--- " + b"A" * 43 + b"\n"),
    "zeros": _raw(bytes(32 << 20)),
}


def mutations(data: bytes, seed: int = 0) -> Iterator[bytes]:
    """Ends cut off, bytes turned, parts doubled, dropped, swapped, at places drawn anew and at every border."""
    draw = random.Random(seed)
    for _ in range(12):
        at, other = sorted(draw.sample(range(len(data)), 2))
        yield data[:at]
        yield data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        yield data[:other] + data[at:]
        yield data[:at] + data[other:]
    for at in (0, 1, 22, 30, 1600, len(data) - 65_552, len(data) - 16, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]
    yield data + b"\0"
    yield data + data


def measure(parcel: Parcel) -> tuple[str, float]:
    """Open and verify what lies there: the refusal's code, and the worst peak above what was resident before, MiB."""
    reset_peak_memory()
    before, verdicts = peak_memory_mb() or 0.0, set()
    hub, roster = parcel.federation.hub, parcel.federation.roster
    for attempt in (
        lambda: parcel.open(),
        lambda: verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener),
        lambda: verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label),
    ):
        try:
            attempt()
            verdicts.add("opened")
        except NotFedError as error:
            verdicts.add(error.code)
    return " ".join(sorted(verdicts)), (peak_memory_mb() or 0.0) - before


def in_a_child(work: Callable[[], object]) -> str:
    """Its result as JSON, from a fork: memory that others used before does not hide what this needs."""
    inner, outer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inner)
        try:
            with os.fdopen(outer, "w") as file:
                file.write(json.dumps(work()))
        finally:
            os._exit(0)
    os.close(outer)
    with os.fdopen(inner) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def main(folder: Path) -> None:
    """All cases, then the mutations of a sealed organ of eight megabytes."""
    federation = Federation.make(folder / "roster")
    found: dict[str, object] = {}
    warm = folder / "warm"
    warm.mkdir()
    measure(Parcel(warm, federation))  # whatever is imported late is there
    for name, make in CASES.items():
        place = folder / "case"
        place.mkdir()
        parcel = Parcel(place, federation)
        in_a_child(lambda make=make, parcel=parcel: make(parcel))  # type: ignore[misc]
        found[name] = json.loads(in_a_child(lambda parcel=parcel: measure(parcel)))  # type: ignore[misc]
        shutil.rmtree(place)
    place = folder / "mutations"
    place.mkdir()
    parcel = Parcel(place, federation, organ=organ_bytes(floats=1_000_000))
    found["mutations"] = json.loads(in_a_child(lambda: worst_mutation(parcel)))
    sys.stdout.write(json.dumps(found))


def worst_mutation(parcel: Parcel) -> tuple[str, float, int]:
    """What all of them were refused with, the most that one cost, and how many there were."""
    whole, verdicts, extra, count = parcel.path.read_bytes(), set(), 0.0, 0
    for mutation in mutations(whole):
        parcel.path.write_bytes(mutation)
        verdict, more = measure(parcel)
        verdicts |= set(verdict.split())
        extra, count = max(extra, more), count + 1
    return " ".join(sorted(verdicts)), extra, count


if __name__ == "__main__":
    main(Path(sys.argv[1]))
