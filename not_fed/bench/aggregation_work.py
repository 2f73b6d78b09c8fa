"""One piece of `bench aggregation` without Flower: `python -m not_fed.bench.aggregation_work SETTINGS`.

`ours` is the secure sum, `plain` the plain mean, `limits` what the machine itself gives: what was measured goes to
stdout as a JSON object.
Every number comes from a process of its own, forked off when everything that it needs is there. It does its work
twice, and the second time counts: all code is there, and a virtual machine's kernel need not fetch memory from the
host. Memory has another process, which gives back what is free in between, or the second time would need too little.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from not_fed.age import hpke
from not_fed.age.hybrid import HybridIdentity
from not_fed.aggregation.secure import Ring, ServerSum, SiteSum, SumLedger, Total
from not_fed.bench.harness import peak_memory_mb, reset_peak_memory, resting_memory_mb
from not_fed.envelope.summing import Contribution, KeyRef, SumCall
from not_fed.keys import FileSigner, Opener, PublicIdentity, Steward
from not_fed.trust.members import TrustedRoster
from not_fed.trust.plans import SumPlan
from not_fed.trust.roster import create_roster, load_roster

SCALE = np.float32(4.4e-4)  # rms of a round's change of a weight
BLOCK_BYTES = 1 << 18
TENSORS = 27
NOTHING = Contribution(dp=None)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a piece is to do.

    Attributes:
        piece: plain, limits or ours.
        collude, vanish: of the plan.
        lost: how many uploads are missing where some are.
    """

    piece: str
    folder: str
    parameters: int
    sites: int
    collude: int
    vanish: int
    lost: int
    clip: float
    repeats: int


class Clock:
    """CPU seconds of this process, but only of what stands between `with clock`: the rest is carrying, or the bench."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._began


Work = Callable[[Clock], dict[str, Any]]


def update(site: int, parameters: int) -> Floats:
    """A site's change of its weights; the same for the same number."""
    return np.random.default_rng(site).standard_normal(parameters, dtype=np.float32) * SCALE


def measured(prepare: Callable[[], Work], *, repeats: int) -> dict[str, Any]:
    """Each repeat's CPU seconds, and the most memory that the work needed beyond what was there when it began."""
    memory = apart(lambda: _twice(prepare, trim=True))
    turns = [apart(lambda: _twice(prepare, trim=False)) for _ in range(repeats)]
    return turns[0] | {"cpu_s": [turn["cpu_s"] for turn in turns], "extra_mib": memory["extra_mib"]}


def _twice(prepare: Callable[[], Work], *, trim: bool) -> dict[str, Any]:
    _once(prepare())
    if trim:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc
    return _once(prepare())


def _once(work: Work) -> dict[str, Any]:
    clock = Clock()
    gc.collect()
    reset_peak_memory()
    rest_mb = resting_memory_mb() or 0.0
    found = work(clock)
    return found | {"cpu_s": clock.cpu_s, "extra_mib": (peak_memory_mb() or 0.0) - rest_mb}


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, done by a fork of this process, whose memory then goes back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a forked piece failed")
    found: dict[str, Any] = json.loads(said)
    return found


def plain(settings: Settings) -> dict[str, Any]:
    """The mean without any secrecy, by numpy, and by the mean that mode `trusted` computes over organ files."""
    count, folder = settings.parameters, Path(settings.folder)
    change = update(0, count)
    vector = folder / "plain.vector"
    change.tofile(vector)

    def send() -> Work:
        def work(clock: Clock) -> dict[str, Any]:
            with clock:
                hashlib.sha256(change.tobytes()).digest()
            return {"bytes_out": change.nbytes}

        return work

    def server(*, hashed: bool) -> Callable[[], Work]:
        def prepare() -> Work:
            def work(clock: Clock) -> dict[str, Any]:
                total = np.zeros(count, np.float32)
                for _ in range(settings.sites):
                    received = np.fromfile(vector, np.float32)
                    with clock:
                        if hashed:
                            hashlib.sha256(received.data).digest()
                        np.add(total, received, out=total)
                with clock:
                    np.divide(total, settings.sites, out=total)
                return {"bytes_in": settings.sites * change.nbytes}

            return work

        return prepare

    return {
        "site": measured(send, repeats=settings.repeats),
        "server": measured(server(hashed=False), repeats=settings.repeats),
        "server, hashing each vector": measured(server(hashed=True), repeats=settings.repeats),
        "server, not-fed's mean of organ files": measured(_trusted(settings, change), repeats=settings.repeats),
    }


def _trusted(settings: Settings, change: Floats) -> Callable[[], Work]:
    """not-fed's own mean of organ files in float64, as the trusted aggregator computes it."""
    from safetensors.numpy import save_file

    from not_fed.aggregation.mean import WeightedMean  # torch, which the other pieces do without

    folder = Path(settings.folder)
    organ = folder / "plain.organ"
    save_file({f"t{number}": part for number, part in enumerate(np.array_split(change, TENSORS))}, organ)

    def prepare() -> Work:
        def work(clock: Clock) -> dict[str, Any]:
            with clock, tempfile.TemporaryDirectory(dir=folder) as scratch:
                mean = WeightedMean(scratch=Path(scratch))
                for _ in range(settings.sites):
                    mean.add(organ)
                for name in mean.tensors():
                    mean.tensor(name)
            return {"bytes_in": settings.sites * organ.stat().st_size}

        return work

    return prepare


def limits(settings: Settings) -> dict[str, Any]:
    """What one core of this machine gives, now: seconds for a whole vector, and for one signature or capsule."""
    count = settings.parameters
    change = update(0, count)
    words, other = np.zeros(count, np.uint32), np.ones(count, np.uint32)
    signer = FileSigner.generate("bench")
    key = HybridIdentity(hpke.new_seed())
    message = bytes(8192)
    signed = signer.sign(message)
    sealed = hpke.seal(bytes(256), public=key.public, info=b"bench")
    work: Mapping[str, Callable[[], object]] = {
        "sha256": lambda: hashlib.sha256(words.data).digest(),
        "memcpy": lambda: np.copyto(words, other),
        "add": lambda: np.add(words, other, out=words),
        "chacha20": lambda: _chacha20(words, add=False),
        "chacha20 and add": lambda: _chacha20(words, add=True),
        "RandomState": lambda: _random_state(count),
        "round": lambda: _round(change, settings.clip),
        "sign": lambda: signer.sign(message),
        "verify": lambda: signer.public.both_signed(message, signed),
        "seal": lambda: hpke.seal(bytes(256), public=key.public, info=b"bench"),
        "unseal": lambda: key.open(sealed, info=b"bench"),
    }  # fmt: skip
    small = {"sign", "verify", "seal", "unseal"}
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(settings.repeats + 1):
        for name, run in work.items():
            times = 20 if name in small else 1
            began = time.process_time()
            for _ in range(times):
                run()
            found[name].append((time.process_time() - began) / times)
    return {"vector_bytes": words.nbytes, "cpu_s": {name: seconds[1:] for name, seconds in found.items()}}


def _chacha20(words: NDArray[np.uint32], *, add: bool) -> None:
    stream = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()
    zeros, buffer = bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES)
    mask = np.frombuffer(buffer, np.uint32)
    for part in _blocks(words):
        stream.update_into(memoryview(zeros)[: part.nbytes], buffer)
        if add:
            np.add(part, mask[: len(part)], out=part)


def _round(change: Floats, clip: float) -> None:
    """The least that rounding to 24 bits takes: one pass in float64, block by block."""
    step = clip / ((1 << 23) - 1)
    for part in _blocks(change):
        scaled = np.multiply(part, 1.0 / step, dtype=np.float64)
        np.clip(np.rint(scaled, out=scaled), -(1 << 23) + 1, (1 << 23) - 1, out=scaled)
        scaled.astype(np.int32)


def _random_state(count: int) -> NDArray[np.int64]:
    """One mask as Flower draws it."""
    return np.random.RandomState(7).randint(0, (1 << 32) - 1, count, dtype=np.int64)


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    length = BLOCK_BYTES // array.itemsize
    return (array[start : start + length] for start in range(0, len(array), length))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One site's upload; its vector lies in a file."""

    label: bytes
    capsules: Mapping[str, bytes]
    vector: Path


class Round:
    """A secure sum among `sites` sites, all of whose uploads are there, in one process and one folder."""

    def __init__(self, settings: Settings) -> None:
        self.folder, self.parameters, self.now = Path(settings.folder), settings.parameters, datetime.now(UTC)
        self.plan = make_plan(settings.sites, collude=settings.collude, vanish=settings.vanish, clip=settings.clip)
        self.names = list(self.plan.sites)
        members = (*self.names, self.plan.coordinator)
        self._signers = {name: FileSigner.generate(name) for name in members}
        self._openers = {name: Opener(name=name, identity=HybridIdentity(os.urandom(32))) for name in members}
        self.roster = self._make_roster()
        self.keys = {name: self.site(name).offer_key() for name in self.names}
        cohort = tuple(KeyRef(site=name, key_sha256=_sha256(line)) for name, line in self.keys.items())
        self.call = SumCall(
            v=1, plan_sha256=self.plan.sha256, federation=self.plan.federation, run=self.plan.run, round=1,
            start_sha256="1" * 64, parameters=self.parameters, cohort=cohort,
        )  # fmt: skip
        self.rule = self.plan.thresholds()
        self.helpers = self.call.helpers(self.rule.helpers)
        self.ordinary = [name for name in self.names if name not in self.helpers]
        self.keep("keys")
        self.uploads = {name: self._upload(name) for name in self.names}
        self.keep("uploads")

    def site(self, name: str, *, folder: str = "now") -> SiteSum:
        """A site with its memory as it is in that folder."""
        place = self.folder / folder / name
        place.mkdir(parents=True, exist_ok=True)
        return SiteSum(
            plan=self.plan, signer=self._signers[name], opener=self._openers[name], roster=self.roster,
            ledger=SumLedger(place), now=self.now,
        )  # fmt: skip

    def keep(self, folder: str) -> None:
        """Remember what all sites remember, for `again`."""
        shutil.copytree(self.folder / "now", self.folder / folder)

    def again(self, name: str, folder: str) -> SiteSum:
        """A site that remembers what it did when `folder` was kept, as often as one likes."""
        place = f"again-{os.getpid()}"
        shutil.rmtree(self.folder / place, ignore_errors=True)
        shutil.copytree(self.folder / folder / name, self.folder / place / name)
        return self.site(name, folder=place)

    def change(self, name: str) -> Floats:
        """What this site would send, were it not masked."""
        return update(self.names.index(name), self.parameters)

    def active(self, lost: Sequence[str]) -> dict[str, _Sent]:
        """Uploads that arrived."""
        return {name: sent for name, sent in self.uploads.items() if name not in lost}

    def asked(self, name: str, lost: Sequence[str]) -> dict[str, Any]:
        """What a site gets when it is asked to help, or to reveal."""
        active = self.active(lost)
        return {
            "labels": [sent.label for sent in active.values()],
            "capsules_to_me": {uploader: sent.capsules[name] for uploader, sent in active.items()},
        }

    def partials(self, lost: Sequence[str]) -> dict[str, tuple[bytes, Path]]:
        """Every helper's statement and vector, without these uploads."""
        return {name: self._partial(name, lost) for name in self.helpers}

    def plain_sum(self, lost: Sequence[str]) -> NDArray[Any]:
        """The words of the sum, computed without any mask."""
        ring = Ring.of(self.plan)
        total = np.zeros(self.parameters, ring.dtype)
        for name in self.active(lost):
            total += ring.words(ring.round(self.change(name)), weight=1)
        return total

    def _partial(self, name: str, lost: Sequence[str]) -> tuple[bytes, Path]:
        path = self.folder / f"{name}-{len(lost)}.partial"
        with path.open("xb", buffering=0) as file:
            helped = self.again(name, "uploads").help(self.call, **self.asked(name, lost), sink=file.write)
        return helped.statement, path

    def _upload(self, name: str) -> _Sent:
        path = self.folder / f"{name}.vector"
        with path.open("xb", buffering=0) as file:
            sent = self.site(name).upload(
                self.call, keys=self.keys, change=[self.change(name)], sink=file.write, contribution=NOTHING
            )
        return _Sent(label=sent.label, capsules=sent.capsules, vector=path)

    def _identity(self, name: str) -> PublicIdentity:
        keys = self._signers[name].public
        return PublicIdentity(name, keys.ed25519, keys.ml_dsa_65, self._openers[name].recipient, self.now)

    def _make_roster(self) -> TrustedRoster:
        members = [(self._identity(name), ["author", "receiver"]) for name in self.names]
        members.append((self._identity(self.plan.coordinator), ["relay", "aggregator"]))
        place = self.folder / "roster"
        create_roster(
            place, federation=self.plan.federation, steward=Steward.generate("steward"), members=members,
            plans=[self.plan], now=self.now,
        )  # fmt: skip
        return load_roster(place, now=self.now)


def make_plan(sites: int, *, collude: int, vanish: int, clip: float) -> SumPlan:
    """The plan of the benchmark's secure sums."""
    return SumPlan(
        federation="bench", run="bench", coordinator="hub", sites=tuple(f"site-{number:03}" for number in range(sites)),
        rounds=1, base_sha256="0" * 64, spans=((0, 3),), collude=collude, vanish=vanish, clip=clip,
    )  # fmt: skip


def ours(settings: Settings) -> dict[str, Any]:
    """A site's upload, a helper's answer, a site's shares, and the server's part by what is lost."""
    one = Round(settings)
    missing, lost_helper = one.ordinary[: settings.lost], one.helpers[0]
    cases = {
        "server": _Case(one, (), one.partials(())),
        f"server, {settings.lost} upload{'s' if settings.lost > 1 else ''} missing": _Case(
            one, missing, one.partials(missing)
        ),
    }
    whole = cases["server"]
    cases["server, a helper lost"] = _Case(
        one, (), {name: partial for name, partial in whole.partials.items() if name != lost_helper},
        {
            name: one.again(name, "uploads").reveal(one.call, **one.asked(name, ()), missing=[lost_helper])
            for name in one.names if name != lost_helper
        },
    )  # fmt: skip
    found = {
        "site": measured(lambda: _uploading(one, one.ordinary[-1]), repeats=settings.repeats),
        "helper, in addition": measured(lambda: _helping(one, lost_helper), repeats=settings.repeats),
        "reveal, each site": measured(lambda: _revealing(one, lost_helper), repeats=settings.repeats),
    }
    found |= {name: measured(case.summing, repeats=settings.repeats) for name, case in cases.items()}
    equal = all(found[name]["total_sha256"] == case.expected for name, case in cases.items())
    return found | {"check": {"equals_plain_sum": equal, "step": Ring.of(one.plan).step}}


class _Case:
    """What reaches the server, and what it has to find."""

    def __init__(
        self, one: Round, lost: Sequence[str], partials: Mapping[str, tuple[bytes, Path]],
        shares: Mapping[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        self.one, self.active, self.partials, self.shares = one, one.active(lost), partials, shares or {}
        self.expected = _sha256(one.plain_sum(lost).data)

    def summing(self) -> Work:
        """The server's part: vectors come one at a time, and the mean is there as float32 at the end."""

        def work(clock: Clock) -> dict[str, Any]:
            one = self.one
            with clock:
                server = ServerSum(plan=one.plan, call=one.call, roster=one.roster, now=one.now)
            for name, sent in self.active.items():
                vector = _read(sent.vector)
                with clock:
                    server.count_upload(name, label=sent.label, capsules_of=sent.capsules)
                    server.add_vector(name, vector=vector)
                del vector
            with clock:
                server.close_uploads()
            for name, (statement, path) in self.partials.items():
                vector = _read(path)
                with clock:
                    server.count_partial(name, statement=statement)
                    server.subtract_vector(name, vector=vector)
                del vector
            with clock:
                server.close_partials()
                for name, statement in self.shares.items():
                    server.add_shares(name, statement=statement)
                total = server.finish()
                _mean(total, Ring.of(one.plan), parameters=one.parameters)
            return {"total_sha256": _sha256(total.words[: one.parameters].data), "bytes_in": self._received()}

        return work

    def _received(self) -> int:
        uploads = sum(_size(sent) for sent in self.active.values())
        partials = sum(len(statement) + path.stat().st_size for statement, path in self.partials.values())
        return uploads + partials + sum(map(len, self.shares.values()))


def _uploading(one: Round, name: str) -> Work:
    site, change = one.again(name, "keys"), one.change(name)

    def work(clock: Clock) -> dict[str, Any]:
        with clock:
            out = _Buffer(one)
            sent = site.upload(one.call, keys=one.keys, change=[change], sink=out.take, contribution=NOTHING)
        capsules = sum(map(len, sent.capsules.values()))
        return {
            "bytes_out": out.size + len(sent.label) + capsules, "label_bytes": len(sent.label),
            "capsule_bytes": capsules, "bytes_in": sum(map(len, one.keys.values())),
        }  # fmt: skip

    return work


def _helping(one: Round, name: str) -> Work:
    site, asked = one.again(name, "uploads"), one.asked(name, ())

    def work(clock: Clock) -> dict[str, Any]:
        with clock:
            out = _Buffer(one)
            helped = site.help(one.call, **asked, sink=out.take)
        return {"bytes_out": out.size + len(helped.statement), "bytes_in": _asked_bytes(asked)}

    return work


def _revealing(one: Round, lost: str) -> Work:
    name = one.ordinary[-1]
    site, asked = one.again(name, "uploads"), one.asked(name, ())

    def work(clock: Clock) -> dict[str, Any]:
        with clock:
            statement = site.reveal(one.call, **asked, missing=[lost])
        return {"bytes_out": len(statement), "bytes_in": _asked_bytes(asked)}

    return work


class _Buffer:
    """Where a vector goes: memory, of which it takes its size and no more."""

    def __init__(self, one: Round) -> None:
        self._bytes, self.size = bytearray(Ring.of(one.plan).vector_bytes(one.parameters)), 0

    def take(self, words: memoryview) -> None:
        data = words.cast("B")
        self._bytes[self.size : self.size + len(data)] = data
        self.size += len(data)


def _mean(total: Total, ring: Ring, *, parameters: int) -> Floats:
    """The mean change, block by block."""
    mean, length = np.empty(parameters, np.float32), BLOCK_BYTES // 4
    for start in range(0, parameters, length):
        mean[start : start + length] = ring.mean(total.words[start : min(start + length, parameters)],
                                                 weight=total.weight or 1)  # fmt: skip
    return mean


def _read(path: Path) -> memoryview:
    return np.fromfile(path, np.uint8).data


def _size(sent: _Sent) -> int:
    return sent.vector.stat().st_size + len(sent.label) + sum(map(len, sent.capsules.values()))


def _asked_bytes(asked: Mapping[str, Any]) -> int:
    return sum(map(len, asked["labels"])) + sum(map(len, asked["capsules_to_me"].values()))


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


PIECES: Mapping[str, Callable[[Settings], dict[str, Any]]] = {"ours": ours, "plain": plain, "limits": limits}


def main(words: Sequence[str]) -> None:
    """Do one piece and print what was measured."""
    settings = Settings(**json.loads(words[0]))
    sys.stdout.write(json.dumps(PIECES[settings.piece](settings)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
