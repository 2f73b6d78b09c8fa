"""One piece of work of `bench crypto`, in a process of its own: `python -m not_fed.bench.crypto_work FOLDER NAME`.

Each is done twice, and the second time counts: imports and tables are there, and the file cache takes the memory that
the first time gave back. (In a virtual machine that returns free memory to its host, the first use of a page waits for
the host, and whoever comes first pays: copying a file took 0.5 of its digest's time, or 4.7.) The peak of resident
memory is reset in between. Everything that is written is also fsynced, ours or
a peer's, since only then is it there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from not_fed.bench.harness import peak_memory_mb, reset_peak_memory

if TYPE_CHECKING:
    from not_fed.envelope import Verified
    from not_fed.keys import Opener, Secret, Signer
    from not_fed.trust.members import TrustedRoster

FEDERATION, AUTHOR, READER = "bench", "site-00", "site-01"
SMALL, LARGE = "small", "large"
COPY_BYTES = 1 << 20
CHUNK_BYTES = 64 * 1024  # what age uses, so that secretstream does the same work
Work = Callable[[str], object]


@dataclass(frozen=True)
class Place:
    """The folder of one run of the benchmark; files are called <size>.<what>."""

    folder: Path
    made: set[str] = field(default_factory=set)

    @cached_property
    def now(self) -> datetime:
        """One moment for the whole run."""
        return datetime.fromisoformat((self.folder / "now").read_text())

    @cached_property
    def roster(self) -> TrustedRoster:
        """With fifty-one members."""
        from not_fed.trust.roster import load_roster

        return load_roster(self.folder / "roster", now=self.now)

    @cached_property
    def signer(self) -> Signer:
        """The author, who sends it too."""
        from not_fed.keys import load_signer

        return load_signer(self.folder / AUTHOR, passphrase=self._passphrase)

    @cached_property
    def opener(self) -> Opener:
        """A recipient."""
        from not_fed.keys import load_opener

        return load_opener(self.folder / READER, passphrase=self._passphrase)

    @property
    def _passphrase(self) -> Secret:
        from not_fed.keys import Secret

        return Secret((self.folder / "passphrase").read_bytes())

    def input(self, size: str, what: str) -> Path:
        """A file that is there."""
        return self.folder / f"{size}.{what}"

    def output(self, size: str, what: str) -> Path:
        """A file that will be; what was there goes, which before the clock runs `clear` has seen to."""
        self.made.add(what)
        self._remove(size, what)
        return self.folder / f"{size}.{what}"

    def clear(self) -> None:
        """Remove the large ones of what was made, with the papers beside them: freeing memory takes time too."""
        for what in self.made:
            self._remove(LARGE, what)

    def _remove(self, size: str, what: str) -> None:
        for suffix in ("", ".label", ".passport"):
            (self.folder / f"{size}.{what}{suffix}").unlink(missing_ok=True)


def hash_file(place: Place) -> Work:
    """SHA-256 as hashlib does it: what every ratio is a ratio to."""

    def work(size: str) -> object:
        with place.input(size, "organ").open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return work


def copy_file(place: Place) -> Work:
    """Read and write, and nothing else."""

    def work(size: str) -> object:
        block = memoryview(bytearray(COPY_BYTES))
        with place.input(size, "organ").open("rb", buffering=0) as source, _output(place, size, "copy") as target:
            while count := source.readinto(block):
                target.write(block[:count])
        return None

    return work


def seal(recipients: int, *, known: bool) -> Callable[[Place], Work]:
    """Passport and all; the organ's digest known since it was saved, or not."""

    def prepare(place: Place) -> Work:
        from not_fed.envelope import issue_passport, new_passport, seal_organ
        from not_fed.snapshots import take_snapshot

        snapshots = {size: take_snapshot(place.input(size, "organ")) for size in (SMALL, LARGE)} if known else {}

        def work(size: str) -> object:
            organ = place.input(size, "organ")
            snapshot = snapshots.get(size) or take_snapshot(organ)
            passport = new_passport(
                organ, author=AUTHOR, federation=FEDERATION, round_number=0, now=place.now, organ_sha256=snapshot.sha256
            )
            return seal_organ(
                organ, passport=issue_passport(passport, signer=place.signer), sender=place.signer, roster=place.roster,
                recipients=[f"site-{number:02}" for number in range(1, recipients + 1)], federation=FEDERATION,
                round_number=0, now=place.now, snapshot=snapshot,
                out=place.output(size, f"{recipients}.sealed" if known else "other.sealed"),
            )  # fmt: skip

        return work

    return prepare


def open_sealed(recipients: int, *, label: bool) -> Callable[[Place], Work]:
    """All checks; with a label, the ciphertext is hashed too."""

    def prepare(place: Place) -> Work:
        from not_fed.envelope import open_organ

        def work(size: str) -> object:
            return open_organ(
                place.input(size, f"{recipients}.sealed"), opener=place.opener, roster=place.roster, now=place.now,
                out=place.output(size, "opened"), label=_label(place, size, recipients) if label else None,
            )  # fmt: skip

        return work

    return prepare


def verify(*, key: bool) -> Callable[[Place], Work]:
    """By the label alone, or by decrypting everything."""

    def prepare(place: Place) -> Work:
        from not_fed.envelope import verify_sealed

        def work(size: str) -> Verified:
            return verify_sealed(
                place.input(size, "3.sealed"), roster=place.roster, now=place.now,
                label=None if key else _label(place, size, 3), opener=place.opener if key else None,
            )  # fmt: skip

        return work

    return prepare


def age_encrypt(place: Place) -> Work:
    """age in Rust, to an X25519 recipient: this binding has no post-quantum one that it could also open."""
    import pyrage

    recipient = pyrage.x25519.Identity.from_str((place.folder / "age.key").read_text()).to_public()

    def work(size: str) -> None:
        out = place.output(size, "age")
        pyrage.encrypt_file(str(place.input(size, "organ")), str(out), [recipient])
        _sync(out)

    return work


def age_decrypt(place: Place) -> Work:
    """The same, back."""
    import pyrage

    identity = pyrage.x25519.Identity.from_str((place.folder / "age.key").read_text())

    def work(size: str) -> None:
        out = place.output(size, "opened")
        pyrage.decrypt_file(str(place.input(size, "age")), str(out), [identity])
        _sync(out)

    return work


def secretstream_encrypt(place: Place) -> Work:
    """libsodium's stream, with a key that is simply there."""
    from nacl import bindings as sodium

    key = (place.folder / "stream.key").read_bytes()

    def work(size: str) -> object:
        state, block = sodium.crypto_secretstream_xchacha20poly1305_state(), memoryview(bytearray(CHUNK_BYTES))
        with place.input(size, "organ").open("rb", buffering=0) as source, _output(place, size, "stream") as target:
            target.write(sodium.crypto_secretstream_xchacha20poly1305_init_push(state, key))
            while count := source.readinto(block):
                target.write(sodium.crypto_secretstream_xchacha20poly1305_push(state, bytes(block[:count])))
        return None

    return work


def secretstream_decrypt(place: Place) -> Work:
    """The same, back."""
    from nacl import bindings as sodium

    key = (place.folder / "stream.key").read_bytes()

    def work(size: str) -> object:
        state = sodium.crypto_secretstream_xchacha20poly1305_state()
        with place.input(size, "stream").open("rb") as source, _output(place, size, "opened") as target:
            header = source.read(sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES)
            sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
            while block := source.read(CHUNK_BYTES + sodium.crypto_secretstream_xchacha20poly1305_ABYTES):
                target.write(sodium.crypto_secretstream_xchacha20poly1305_pull(state, block)[0])
        return None

    return work


def model_sign(place: Place) -> Work:
    """OpenSSF model signing with an EC key: a digest and one signature, no encryption."""
    from model_signing import signing

    def work(size: str) -> object:
        config = signing.Config().use_elliptic_key_signer(private_key=place.folder / "ec.key")
        return config.sign(place.input(size, "organ"), place.output(size, "sig"))

    return work


def model_verify(place: Place) -> Work:
    """The same, checked."""
    from model_signing import verifying

    def work(size: str) -> object:
        config = verifying.Config().use_elliptic_key_verifier(public_key=place.folder / "ec.pub")
        return config.verify(place.input(size, "organ"), place.input(size, "sig"))

    return work


# In this order in each turn: what one leaves, the next ones read.
PREPARE: Mapping[str, Callable[[Place], Work]] = {
    "sha256": hash_file, "copy": copy_file,
    "seal 1 known": seal(1, known=True), "seal 3 known": seal(3, known=True), "seal 50 known": seal(50, known=True),
    "seal 3": seal(3, known=False), "verify label": verify(key=False), "verify key": verify(key=True),
    "open 3": open_sealed(3, label=False), "open 50": open_sealed(50, label=False),
    "open 3 label": open_sealed(3, label=True), "age encrypt": age_encrypt, "age decrypt": age_decrypt,
    "secretstream encrypt": secretstream_encrypt, "secretstream decrypt": secretstream_decrypt,
    "model-signing sign": model_sign, "model-signing verify": model_verify,
}  # fmt: skip


def measure(folder: Path, name: str) -> dict[str, float | None]:
    """CPU seconds of all threads, wall seconds, and resident memory before and at its peak, MiB."""
    place = Place(folder)
    work = PREPARE[name](place)
    for size in (SMALL, LARGE):
        work(size)
    place.clear()
    reset_peak_memory()
    idle = peak_memory_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    work(LARGE)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "idle_mib": idle, "peak_mib": peak_memory_mb()}


class _output:  # noqa: N801  reads as a function
    """A new file, fsynced at the end."""

    def __init__(self, place: Place, size: str, what: str) -> None:
        self._file = place.output(size, what).open("xb", buffering=0)

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _label(place: Place, size: str, recipients: int) -> bytes:
    return place.input(size, f"{recipients}.sealed.label").read_bytes()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
