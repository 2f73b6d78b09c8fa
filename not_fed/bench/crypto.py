"""Sealing and opening beside their peers: CPU seconds of all threads, as ratios to `sha256` of the same file.

On a shared machine wall time says little and CPU time much; the ratio to a digest that everybody needs anyway says it
for other machines too. All is measured in turns, each piece in a fresh process (crypto_work.py), in one run.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from not_fed import canonical, files
from not_fed.bench.crypto_work import AUTHOR, FEDERATION, LARGE, PREPARE, READER, SMALL
from not_fed.bench.harness import Times, machine
from not_fed.errors import InputError
from not_fed.keys import FileSigner, PublicIdentity, Secret, Steward, create_keys
from not_fed.keys.sealing import SealKey
from not_fed.progress import Progress, silent
from not_fed.trust.roster import create_roster

SCHEMA = "not-fed/bench-crypto/1"
MEMBERS = 51
LAYERS = 24
PEERS = {"pyrage": "pyrage", "nacl": "PyNaCl", "model_signing": "model-signing", "OpenSSL": "pyOpenSSL"}
LIBRARIES = ("not-fed", "cryptography", "numpy", *PEERS.values())
COPIES = 8  # of the organ, at most, in the folder at one time
COLUMNS = ("operation", "CPU", "x sha256", "wall", "MB/s", "peak", "extra")
NAMES = {
    "sha256": "sha256 (hashlib)", "copy": "copy, 1 MiB blocks", "seal 1 known": "**seal**, 1 recipient",
    "seal 3 known": "**seal**, 3 recipients", "seal 50 known": "**seal**, 50 recipients",
    "seal 3": "**seal**, 3 recipients, digest not known", "verify label": "**verify**, by its label",
    "verify key": "**verify**, with the key", "open 3": "**open**, of 3 recipients",
    "open 50": "**open**, of 50 recipients", "open 3 label": "**open**, of 3 recipients, and its label",
    "age encrypt": "age (pyrage, X25519), encrypt", "age decrypt": "age (pyrage, X25519), decrypt",
    "secretstream encrypt": "libsodium secretstream, 64 KiB, encrypt",
    "secretstream decrypt": "libsodium secretstream, 64 KiB, decrypt",
    "model-signing sign": "model-signing, EC, sign", "model-signing verify": "model-signing, EC, verify",
}  # fmt: skip
OPENSSL = ("sha256", "chacha20-poly1305", "aes-256-gcm")


class PeerMissing(InputError):
    """What the benchmark compares with is not installed."""

    code = "bench-peer-missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operation: medians over the turns, with their spread; `extra_mib` is above the same process when idle."""

    name: str
    cpu_s: Times
    wall_s: Times
    ratio: float
    ratio_low: float
    ratio_high: float
    mb_per_s: float
    peak_mib: float | None
    extra_mib: float | None


def bench_crypto(
    *, size_mb: int, repeats: int, folder: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Measure all of it, and leave nothing behind.

    Args:
        size_mb: size of the organ, in millions of bytes.
        repeats: turns; each does everything once.
        folder: where temporary files go; otherwise the first usual place with room for eight organs.
    Raises:
        PeerMissing, NoSpace.
    """
    _check_peers()
    with _scratch(folder, needed=COPIES * size_mb * 1_000_000) as place:
        _set_up(place, size_bytes=size_mb * 1_000_000)
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in PREPARE}
        startup: list[float] = []
        total = repeats * (len(PREPARE) + 1)
        for _ in range(repeats):
            for name, found in turns.items():
                found.append(_measure(place, name))
                progress("bench crypto", done=sum(map(len, turns.values())) + len(startup), total=total)
            startup.append(_start_up(place))
        rows = [_row(name, found, turns["sha256"], size_mb=size_mb) for name, found in turns.items()]
        where = {"folder": str(place.parent), "filesystem": _filesystem(place)}
    return {
        "schema": SCHEMA, "machine": machine(LIBRARIES), "size_mb": size_mb, "repeats": repeats, **where,
        "rows": [asdict(row) for row in rows], "verify_command_s": asdict(Times.of(startup)),
        "openssl_speed": _openssl_speed(),
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        cells = (
            NAMES[row["name"]], f"{row['cpu_s']['median']:.2f} s",
            f"**{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
            f"{row['wall_s']['median']:.2f} s", f"{row['mb_per_s']:,.0f}", _mib(row["peak_mib"]),
            _mib(row["extra_mib"]),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    for name, speed in result["openssl_speed"].items():
        lines.append(f"| openssl speed, {name}, 64 KiB | | | | {speed:,.0f} | | |")
    command = Times(**result["verify_command_s"])
    lines.append(f"| `not-fed verify` of a small file, the whole command | | | {command} | | | |")
    return "\n".join(lines)


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MiB"


def _check_peers() -> None:
    missing = [package for module, package in PEERS.items() if find_spec(module) is None]
    if missing:
        raise PeerMissing(
            where="bench crypto", expected=f"{', '.join(missing)}, to compare with", got="not installed",
            hint="pip install 'not-fed[bench]'",
        )  # fmt: skip


@contextmanager
def _scratch(chosen: Path | None, *, needed: int) -> Iterator[Path]:
    """A private folder where there is room; it goes away again, whatever happens."""
    places = [chosen] if chosen else [Path(tempfile.gettempdir()), Path.cwd(), Path("/dev/shm"), Path.home()]  # noqa: S108
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free >= needed:
            with tempfile.TemporaryDirectory(prefix="not-fed-bench-", dir=place) as folder:
                yield Path(folder)
            return
    raise files.NoSpace(
        where=", ".join(map(str, places)), expected=f"{needed:,} bytes free", got="less",
        hint="free some space, or measure less with --size-mb",
    )  # fmt: skip


def _set_up(place: Path, *, size_bytes: int) -> None:
    """Organs, keys, a roster, and what the peers need."""
    now = datetime.now(UTC).replace(microsecond=0)
    (place / "now").write_text(now.isoformat())
    passphrase = Secret(secrets.token_hex(16).encode())
    files.write_atomic(place / "passphrase", passphrase.reveal())
    names = [create_keys(place / name, name=name, passphrase=passphrase, work_factor=10) for name in (AUTHOR, READER)]
    others = [_stranger(f"site-{number:02}", now) for number in range(2, MEMBERS)]
    members = [(identity, ("author", "receiver")) for identity in (*names, *others)]
    create_roster(
        place / "roster", federation=FEDERATION, steward=Steward.generate("steward"), members=members, now=now
    )
    for name, size in ((SMALL, 100_000), (LARGE, size_bytes)):
        _write_organ(place / f"{name}.organ", size_bytes=size)
    _peer_keys(place)


def _stranger(name: str, now: datetime) -> PublicIdentity:
    """A member whose secrets nobody needs."""
    keys = FileSigner.generate(name).public
    return PublicIdentity(name, keys.ed25519, keys.ml_dsa_65, SealKey.generate(now=now).identity.recipient, now)


def _write_organ(path: Path, *, size_bytes: int) -> None:
    """A bfloat16 organ of random weights, of about that size."""
    manifest = {
        "format": "not-fed.organ/1", "blood_type": {"family": "llama", "hidden_size": 1024}, "span": [0, LAYERS],
        "base_sha256": "ab" * 32, "span_sha256": "cd" * 32, "parents": [], "training": None,
    }  # fmt: skip
    count = size_bytes // (2 * LAYERS)
    entries: dict[str, Any] = {"__metadata__": {"not-fed": canonical.dumps(manifest).decode()}}
    for number in range(LAYERS):
        offsets = [number * count * 2, (number + 1) * count * 2]
        entries[f"layers.{number}.mlp.up_proj.weight"] = {"dtype": "BF16", "shape": [count], "data_offsets": offsets}
    header = canonical.dumps(entries)
    header += b" " * (-len(header) % 8)
    generator = np.random.default_rng(0)
    with files.new_file(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(LAYERS):
            file.write(
                (generator.standard_normal(count, dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
            )


def _peer_keys(place: Path) -> None:
    import pyrage
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from nacl.bindings import crypto_secretstream_xchacha20poly1305_keygen

    files.write_atomic(place / "age.key", str(pyrage.x25519.Identity.generate()).encode())
    files.write_atomic(place / "stream.key", crypto_secretstream_xchacha20poly1305_keygen())
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, data in (("ec.key", private), ("ec.pub", public)):
        files.write_atomic(place / name, data)


def _measure(place: Path, name: str) -> dict[str, float]:
    done = _run([sys.executable, "-m", "not_fed.bench.crypto_work", str(place), name])
    for left in ("opened", "copy", "other.sealed"):  # what no later step reads: room for the next one
        (place / f"{LARGE}.{left}").unlink(missing_ok=True)
    found: dict[str, float] = json.loads(done)
    return found


def _start_up(place: Path) -> float:
    words = ["verify", str(place / f"{SMALL}.3.sealed"), "--roster", str(place / "roster"), "--json"]
    started = time.perf_counter()
    _run([sys.executable, "-c", "from not_fed.cli.main import main; main()", *words])
    return time.perf_counter() - started


def _run(words: Sequence[str]) -> str:
    """A command of our own; its notes of digests stay out of the user's cache."""
    environment = os.environ | {"NOT_FED_CACHE": os.devnull}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{words[-1]}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _row(name: str, found: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], *, size_mb: int) -> Row:
    unit = statistics.median(turn["cpu_s"] for turn in base)
    cpu, wall = (Times.of([turn[key] for turn in found]) for key in ("cpu_s", "wall_s"))
    known = [turn for turn in found if turn["peak_mib"] is not None]
    return Row(
        name=name,
        cpu_s=cpu,
        wall_s=wall,
        ratio=cpu.median / unit,
        ratio_low=cpu.low / unit,
        ratio_high=cpu.high / unit,
        mb_per_s=size_mb / wall.median,
        peak_mib=max((turn["peak_mib"] for turn in known), default=None),
        extra_mib=max((turn["peak_mib"] - turn["idle_mib"] for turn in known), default=None),
    )


def _openssl_speed() -> dict[str, float]:
    """MB/s of one thread, as the command of the system says; empty where there is none."""
    program = shutil.which("openssl")
    speeds = {}
    for name in OPENSSL if program else ():
        words = [str(program), "speed", "-mr", "-seconds", "1", "-bytes", "65536", "-evp", name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        last = done.stdout.strip().rpartition(":")[2]
        if done.returncode == 0 and last:
            speeds[name] = float(last) / 1e6
    return speeds


def _filesystem(place: Path) -> str:
    """The type of the file system below a folder; copying costs more on some."""
    mounts = Path("/proc/self/mounts")
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()] if mounts.exists() else []
    below = [(point, kind) for point, kind in found if place.resolve().is_relative_to(point)]
    return max(below, key=lambda entry: len(entry[0]))[1] if below else "unknown"
