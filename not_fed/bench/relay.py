"""What it costs a coordinator to relay one large sealed organ: through the bank, and beside it as a Flower message.

The gateway is a process of its own, killed in mid-upload and started again; what is sent is counted at the sender. Its
memory is the peak of its resident size over what it had at rest. The peer is Flower as it comes: one SuperLink with its
database on disk, TLS and node authentication, one SuperNode, one message with as many bytes as uint8 array there and
back, each process's peak.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.age import StreamWriter, write_header
from not_fed.age.header import FILE_KEY_BYTES
from not_fed.age.hybrid import HybridIdentity, wrap
from not_fed.age.stream import NONCE_BYTES
from not_fed.bench.harness import machine
from not_fed.bench.proc import cpu_s, memory_mb, reset_peak
from not_fed.coordinator.creating import Wishes, create_coordinator
from not_fed.coordinator.nodes import Nodes
from not_fed.envelope.enrolment import new_enrolment
from not_fed.envelope.label import write_label
from not_fed.errors import PeerError
from not_fed.keys import Steward
from not_fed.keys.identity import PublicIdentity, sign_identity
from not_fed.keys.node_key import create_node_key
from not_fed.keys.sealing import Opener
from not_fed.keys.signing import FileSigner
from not_fed.progress import Progress, silent
from not_fed.site.bank_client import BankClient, BankUnreachable
from not_fed.site.connection import Connection
from not_fed.trust.roster import create_roster, pin_roster

LIBRARIES = ("not-fed", "flwr", "starlette", "uvicorn", "httpx", "cryptography")
FEDERATION, HUB, SENDER, RECIPIENTS = "bench", "hub", "sender", ("first", "second", "third")
GIB, MIB = 1 << 30, 1 << 20
FLOWER_BYTES = 300 * MIB
BLOCK = 4 * MIB
CUT_AT = 0.4
TARGET_MB = 100


class GatewayNotReady(PeerError):
    """The gateway that was to be measured did not start."""

    code = "bench-gateway"


@dataclass(frozen=True, slots=True)
class _Member:
    signer: FileSigner
    opener: Opener

    @classmethod
    def make(cls, name: str) -> _Member:
        return cls(FileSigner.generate(name), Opener(name=name, identity=HybridIdentity(os.urandom(32))))


def bench_relay(folder: Path, *, size_bytes: int = GIB, flower_bytes: int = FLOWER_BYTES, progress: Progress = silent,
                say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Measure the relay in the new folder `folder`, and Flower's own messages beside it.

    Args:
        flower_bytes: what the peer carries; 0 leaves it out.
    Raises:
        OutputExists; PeerError: something did not start.
    """
    with files.new_folder(folder) as work:
        members = {name: _Member.make(name) for name in (SENDER, *RECIPIENTS)}
        home = _make_home(work, members)
        say(f"a sealed file of {size_bytes / MIB:.0f} MiB through the bank, the gateway killed on its way")
        ours = _measure_bank(work, home, members, size_bytes=size_bytes, progress=progress)
        peer = None
        if flower_bytes:
            from not_fed.bench.relay_flower import measure_flower

            say(f"{flower_bytes / MIB:.0f} MiB as one Flower message, there and back")
            peer = measure_flower(work / "flower", size_bytes=flower_bytes)
    return {"schema": "not-fed/bench-relay/1", "machine": machine(LIBRARIES), "bank": ours, "flower": peer}


def table(result: Mapping[str, Any]) -> str:
    """As Markdown, for people and for docs/benchmarks.md."""
    bank, flower = result["bank"], result["flower"]
    rows = [
        ("relayed", f"{bank['size_bytes'] / MIB:,.0f} MiB to {bank['recipients']} sites"),
        ("gateway at rest", f"{bank['rest_mb']:.0f} MiB"),
        ("more while it is left", f"**{bank['extra_mb_upload']:.0f} MiB**"),
        ("more while all fetch it at once", f"**{bank['extra_mb_downloads']:.0f} MiB**"),
        ("arrived before the gateway was killed", f"{bank['arrived_before_the_kill'] / MIB:,.0f} MiB"),
        ("sent twice because of it", f"{bank['sent_twice'] / MIB:,.0f} MiB"),
        ("gateway, CPU for the rest of it and three downloads", f"{bank['gateway_cpu_s']:.1f} s"),
    ]
    lines = ["| through the bank | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    if flower is not None:
        lines += [
            "",
            f"| {flower['size_bytes'] / MIB:,.0f} MiB as one Flower message, there and back | |",
            "| --- | --- |",
        ]
        lines += [f"| {name}, peak | {mb:,.0f} MiB |" for name, mb in flower["peak_mb"].items()]
        ended = f"{flower['seconds']:.0f} s" if flower["finished"] else f"not finished after {flower['seconds']:.0f} s"
        lines.append(f"| time | {ended} |")
    return "\n".join(lines)


def conclusion(result: Mapping[str, Any]) -> str:
    """One line."""
    most = max(result["bank"]["extra_mb_upload"], result["bank"]["extra_mb_downloads"])
    return f"relaying costs the coordinator {most:.0f} MiB at most, whatever the organ's size ({TARGET_MB} allowed)"


def _measure_bank(
    work: Path, home: Path, members: dict[str, _Member], *, size_bytes: int, progress: Progress
) -> dict[str, Any]:
    sealed = work / "organ.sealed"
    label = _seal(sealed, members, size_bytes=size_bytes)
    size, sha256 = sealed.stat().st_size, label[1]
    with _gateway(home) as (process, port), _client(home, SENDER, members, port, patience_s=0.0) as client:
        rest_1 = memory_mb(process.pid, "VmRSS")
        reset_peak(process.pid)
        _upload_until_killed(client, sealed, label[0], process)
        peak_1, sent_before = client.peak_mb, client.bytes_sent
    arrived = sum(path.stat().st_size for path in (home / "bank" / sha256).glob("0*"))
    with _gateway(home) as (process, port):
        rest = memory_mb(process.pid, "VmRSS")
        reset_peak(process.pid)
        began = time.monotonic()
        with _client(home, SENDER, members, port) as client:
            client.upload(sealed, label=label[0], progress=progress)
            sent_after = client.bytes_sent
        upload_s = time.monotonic() - began
        after_upload = memory_mb(process.pid, "VmHWM")
        began = time.monotonic()

        def fetch(name: str) -> None:
            with _client(home, name, members, port) as recipient:
                recipient.download(sha256, size_bytes=size, out=work / name)

        with ThreadPoolExecutor(len(RECIPIENTS)) as pool:
            list(pool.map(fetch, RECIPIENTS))
        download_s = time.monotonic() - began
        peak = memory_mb(process.pid, "VmHWM")
        gateway_cpu_s = cpu_s(process.pid)
    return {
        "size_bytes": size, "recipients": len(RECIPIENTS), "rest_mb": rest, "extra_mb_upload": after_upload - rest,
        "extra_mb_downloads": peak - rest, "extra_mb_before_the_kill": max(0.0, peak_1 - rest_1),
        "arrived_before_the_kill": arrived, "sent_before": sent_before, "sent_after": sent_after,
        "sent_twice": sent_before + sent_after - size, "seconds_rest_of_upload": upload_s,
        "seconds_downloads": download_s, "gateway_cpu_s": gateway_cpu_s,
    }  # fmt: skip


class _MeasuredClient(BankClient):
    """Looks at the gateway's peak with each chunk, since a process that was killed tells nothing any more."""

    peak_mb = 0.0


def _upload_until_killed(client: _MeasuredClient, sealed: Path, label: bytes, gateway: subprocess.Popen[bytes]) -> None:
    def watch(what: str, *, done: int, total: int, note: str = "") -> None:
        with suppress(OSError, KeyError):
            client.peak_mb = max(client.peak_mb, memory_mb(gateway.pid, "VmHWM"))
        if done >= CUT_AT * total and gateway.poll() is None:
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()

    with suppress(BankUnreachable):
        client.upload(sealed, label=label, progress=watch)


def _make_home(work: Path, members: dict[str, _Member]) -> Path:
    """A coordinator as `coordinator init` makes it, with the members enrolled and on its roster."""
    now, home = datetime.now(UTC), work / HUB
    wishes = Wishes(
        name=HUB, federation=FEDERATION, address="localhost:8443", listen="127.0.0.1:0", base="bench",
        base_sha256="0" * 64, span=(0, 1),
    )  # fmt: skip
    created = create_coordinator(home, wishes, now=now)
    plan = home / "federation.toml"
    names = ", ".join(f'"{name}"' for name in members)
    plan.write_text(plan.read_text(encoding="utf-8").replace("sites = []", f"sites = [{names}]"), encoding="utf-8")
    public = [(created.identity, ["relay"])]
    for name, member in members.items():
        line = sign_identity(member.signer, seal=member.opener.recipient, now=now)
        enrolment = new_enrolment(
            federation=FEDERATION, identity=line, node_key=create_node_key(work / f"{name}.key"), not_fed="bench",
            signer=member.signer, now=now,
        )  # fmt: skip
        Nodes(home).enrol(enrolment, federation=FEDERATION, coordinator=HUB, now=now)
        keys = member.signer.public
        identity = PublicIdentity(name, keys.ed25519, keys.ml_dsa_65, member.opener.recipient, now)
        public.append((identity, ["author", "receiver"]))
    root = create_roster(work / "roster", federation=FEDERATION, steward=Steward.generate("steward"), members=public)
    pin_roster(work / "roster", root_sha256=root, out=home / "roster")
    return home


def _seal(path: Path, members: dict[str, _Member], *, size_bytes: int) -> tuple[bytes, str]:
    """An age file for the recipients with random content, and its label: what a relay sees of a sealed organ."""
    file_key, nonce, whole = os.urandom(FILE_KEY_BYTES), os.urandom(NONCE_BYTES), hashlib.sha256()
    keys = [members[name].opener.recipient for name in RECIPIENTS]
    with files.new_file(path) as file:

        def write(piece: bytes | memoryview) -> None:
            whole.update(piece)
            file.write(piece)

        write(write_header([wrap(file_key, recipient=key) for key in keys], file_key=file_key) + nonce)
        stream = StreamWriter(write, file_key=file_key, nonce=nonce)
        for _ in range(size_bytes // BLOCK):
            stream.write(os.urandom(BLOCK))
        stream.finish()
    now = datetime.now(UTC).replace(microsecond=0)
    label = write_label(
        federation=FEDERATION, round_number=1, signer=members[SENDER].signer, to=sorted(RECIPIENTS), issued=now,
        expires=now + timedelta(days=1), sealed_sha256=whole.hexdigest(), size_bytes=path.stat().st_size,
    )  # fmt: skip
    return label, whole.hexdigest()


@contextmanager
def _gateway(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    told = home / "port"
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", "not_fed.bench.relay_gateway", str(home), str(told)]
    with (home / "gateway.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:  # noqa: S603
        try:
            deadline = time.monotonic() + 60
            while not (told.exists() and told.read_text()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise GatewayNotReady(
                        where="gateway", expected="a port", got="none", hint=f"see {home / 'gateway.log'}"
                    )
                time.sleep(0.1)
            time.sleep(1.0)  # what it loads on its own is rest, not load
            yield process, int(told.read_text())
        finally:
            if process.poll() is None:
                process.terminate()


def _client(
    home: Path, name: str, members: dict[str, _Member], port: int, *, patience_s: float = 60.0
) -> _MeasuredClient:
    connection = Connection(
        address=f"localhost:{port}", ca=home / "tls" / "ca.crt", coordinator=HUB, federation=FEDERATION, gateway=True
    )
    return _MeasuredClient(
        connection, name=name, coordinator=HUB, federation=FEDERATION, signer=members[name].signer,
        patience_s=patience_s,
    )  # fmt: skip
