"""Sites with real keys, a real roster, small real organs; and the tools of an attacker who writes what it likes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.age import HybridIdentity, StreamReader, StreamWriter, read_header, write_header
from not_fed.age.header import Header, Stanza
from not_fed.age.hybrid import wrap
from not_fed.age.stream import NONCE_BYTES
from not_fed.envelope import issue_passport, new_passport, open_organ, seal_organ
from not_fed.envelope.open import Opened
from not_fed.envelope.passport import PAYLOAD_TYPE as PASSPORT_TYPE
from not_fed.envelope.passport import Passport
from not_fed.envelope.seal import Sealed
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.errors import NotFedError
from not_fed.keys import FileSigner, Opener, PublicIdentity, Signer, Steward, dsse
from not_fed.trust.roster import TrustedRoster, create_roster, load_roster

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
FEDERATION = "lowlands"
BASE = "ab" * 32
DP = {
    "epsilon": 3.1, "delta": 1e-5, "unit": "record", "adjacency": "add_or_remove_one", "sample_rate": 0.01,
    "steps": 1000, "runs": 1, "noise_multiplier": 1.1, "max_grad_norm": 1.0, "divisor": 200.0,
    "accountant": "dp-accounting 0.6 PLD 1e-4", "noise_added_at": "site", "records_per_person": 1,
    "repeated_steps": 0, "releases": [], "repeated_releases": {},
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A party with keys of its own."""

    signer: Signer
    opener: Opener

    @classmethod
    def make(cls, name: str) -> Site:
        """New keys, in memory."""
        return cls(FileSigner.generate(name), Opener(name=name, identity=HybridIdentity(os.urandom(32))))

    @property
    def name(self) -> str:
        """Its name."""
        return self.signer.name

    @property
    def public(self) -> PublicIdentity:
        """What it shows a steward."""
        keys = self.signer.public
        return PublicIdentity(self.name, keys.ed25519, keys.ml_dsa_65, self.opener.recipient, NOW)


@dataclass(frozen=True)
class Federation:
    """Three members and the roster that names them."""

    clinic: Site
    hub: Site
    lab: Site
    steward: Steward
    folder: Path
    root_sha256: str
    roster: TrustedRoster

    @classmethod
    def make(cls, folder: Path, *, name: str = FEDERATION) -> Federation:
        """A new one, whose roster lies in `folder`."""
        clinic, hub, lab = (Site.make(site) for site in ("clinic", "hub", "lab"))
        steward = Steward.generate("steward")
        members = [(clinic.public, ["author", "receiver"]), (hub.public, ["aggregator", "receiver"]),
                   (lab.public, ["author", "receiver"])]  # fmt: skip
        digest = create_roster(folder, federation=name, steward=steward, members=members, now=NOW)
        return cls(clinic, hub, lab, steward, folder, digest, load_roster(folder, now=NOW))


def organ_bytes(
    *, span: tuple[int, int] = (2, 4), floats: int = 24, base: str = BASE, dp: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None, value: float = 0.5,
) -> bytes:  # fmt: skip
    """A small well-formed organ."""
    said: dict[str, Any] = {
        "format": "not-fed.organ/1", "blood_type": {"family": "llama", "hidden_size": 8}, "span": list(span),
        "base_sha256": base, "span_sha256": "cd" * 32, "parents": [],
        "training": {"mode": "in-place", "dp": dict(dp) if dp else None},
    } | dict(manifest or {})  # fmt: skip
    names = [f"layers.{layer}.mlp.up_proj.weight" for layer in range(span[1] - span[0])]
    entries: dict[str, Any] = {"__metadata__": {"not-fed": canonical.dumps(said).decode()}}
    for place, name in enumerate(names):
        offsets = [place * floats * 4, (place + 1) * floats * 4]
        entries[name] = {"dtype": "F32", "shape": [floats // 2, 2], "data_offsets": offsets}
    data = struct.pack(f"<{floats * len(names)}f", *(value + place % 5000 / 7 for place in range(floats * len(names))))
    return tensor_file(entries, data)


def tensor_file(entries: object, data: bytes) -> bytes:
    """A safetensors file with that JSON as its header."""
    header = canonical.dumps(entries)
    return len(header).to_bytes(8, "little") + header + data


@dataclass
class Parcel:
    """A sealed organ with all that went into it."""

    folder: Path
    federation: Federation
    organ: bytes = field(default_factory=organ_bytes)
    sender: str = "clinic"
    to: tuple[str, ...] = ("hub", "lab")
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.organ_path = self.folder / "knee.organ"
        self.organ_path.write_bytes(self.organ)
        author: Site = getattr(self.federation, self.sender)
        passport = new_passport(self.organ_path, author=author.name, federation=FEDERATION, round_number=3, now=NOW)
        self.passport: Passport = passport.model_copy(update=self.changes)
        self.passport_line = issue_passport(self.passport, signer=author.signer)
        self.path = self.folder / "knee.sealed"
        self.sealed: Sealed = seal_organ(
            self.organ_path, passport=self.passport_line, sender=author.signer, recipients=self.to,
            roster=self.federation.roster, federation=FEDERATION, round_number=3, out=self.path, now=NOW,
        )  # fmt: skip

    def open(self, by: Site | None = None, *, now: datetime = NOW, **more: Any) -> Opened:  # noqa: ANN401
        """Open what lies at `path` now; by the hub unless somebody else is named."""
        opener = (by or self.federation.hub).opener
        out = more.pop("out", self.folder / "opened.organ")
        return open_organ(self.path, opener=opener, roster=self.federation.roster, out=out, now=now, **more)


def assert_refused(parcel: Parcel, kind: type[NotFedError] | tuple[type[NotFedError], ...], **more: Any) -> NotFedError:  # noqa: ANN401
    """Opening raises `kind` and leaves nothing behind: no output, no passport, no temporary file."""
    before = listing(parcel.folder)
    with pytest.raises(kind) as caught:
        parcel.open(**more)
    assert listing(parcel.folder) == before
    return caught.value


def listing(folder: Path) -> dict[str, int]:
    """Everything in a folder, hidden files too, with its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def build_container(
    plain: bytes, *, recipients: Sequence[str], stanzas: Iterable[Stanza] | None = None, file_key: bytes | None = None
) -> bytes:
    """An age file with any content: what an insider can write who has the format but not the others' keys."""
    key, nonce, out = file_key or os.urandom(16), os.urandom(16), BytesIO()
    wrapped = list(stanzas) if stanzas is not None else [wrap(key, recipient=text) for text in recipients]
    out.write(write_header(wrapped, file_key=key) + nonce)
    writer = StreamWriter(out.write, file_key=key, nonce=nonce)
    writer.write(plain)
    writer.finish()
    return out.getvalue()


def split(sealed: bytes) -> tuple[Header, bytes]:
    """A container's parsed header, and its payload with the nonce."""
    header = read_header(BytesIO(sealed))
    return header, sealed[header.size_bytes :]


def days(count: float) -> timedelta:
    """Shorthand."""
    return timedelta(days=count)


@dataclass
class Forger:
    """An insider's workbench: takes a parcel apart, changes what it likes, signs with keys it has, seals again."""

    parcel: Parcel

    def __post_init__(self) -> None:
        federation = self.parcel.federation
        with self.parcel.path.open("rb") as file:
            header = read_header(file)
            file_key = federation.hub.opener.unwrap(header)
            size = self.parcel.path.stat().st_size - header.size_bytes - NONCE_BYTES
            reader = StreamReader(file, file_key=file_key, payload_bytes=size)
            self.plain = reader.read(reader.size_bytes)
        _, self.waybill_line, self.passport_line, self.organ = self.plain.split(b"\n", 3)
        self.waybill: dict[str, Any] = payload_of(self.waybill_line)
        self.passport: dict[str, Any] = payload_of(self.passport_line)
        self.to = [federation.hub.opener.recipient, federation.lab.opener.recipient]

    def sign(self, payload: object, kind: str, signer: Signer | None = None) -> bytes:
        """A signed line over any payload, by the clinic unless somebody else is named."""
        data = payload if isinstance(payload, bytes) else canonical.dumps(payload)
        return dsse.sign(data, payload_type=kind, signer=signer or self.parcel.federation.clinic.signer)

    def write(
        self, *, waybill: bytes | None = None, passport: bytes | None = None, organ: bytes | None = None,
        pad: bytes = b"", to: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Put a container with these parts where the parcel's was."""
        lines = (b"not-fed.sealed/v1", waybill or self.waybill_line, passport or self.passport_line)
        plain = b"\n".join(lines) + b"\n" + (self.organ if organ is None else organ) + pad
        self.parcel.path.write_bytes(build_container(plain, recipients=self.to if to is None else to))

    def waybill_with(self, *, signer: Signer | None = None, **changes: Any) -> bytes:  # noqa: ANN401
        """The waybill with fields changed; `sender` stands for `from`."""
        named = {"from" if key == "sender" else key: value for key, value in changes.items()}
        return self.sign(self.waybill | named, WAYBILL_TYPE, signer)

    def passport_with(self, *, signer: Signer | None = None, **changes: Any) -> bytes:  # noqa: ANN401
        """The passport with fields of its predicate changed."""
        return self.sign(self.passport | {"predicate": self.passport["predicate"] | changes}, PASSPORT_TYPE, signer)

    def rewrite(self, *, passport: bytes, signer: Signer | None = None, **changes: Any) -> None:  # noqa: ANN401
        """Another passport, with a waybill that names it."""
        digest = hashlib.sha256(passport).hexdigest()
        self.write(passport=passport, waybill=self.waybill_with(signer=signer, passport_sha256=digest, **changes))

    def with_organ(self, organ: bytes) -> None:
        """The clinic itself signs and seals another organ file, whatever is in it."""
        digest = hashlib.sha256(organ).hexdigest()
        statement = self.passport | {"subject": [{"name": "organ", "digest": {"sha256": digest}}]}
        statement["predicate"] = self.passport["predicate"] | {"organ_size_bytes": len(organ)}
        passport = self.sign(statement, PASSPORT_TYPE)
        waybill = self.waybill_with(
            organ={"sha256": digest, "size_bytes": len(organ)}, passport_sha256=hashlib.sha256(passport).hexdigest()
        )
        self.write(waybill=waybill, passport=passport, organ=organ)


def payload_of(line: bytes) -> dict[str, Any]:
    """What a DSSE line says, unverified."""
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["payload"]))
    return value


def edited(line: bytes, **changes: Any) -> bytes:  # noqa: ANN401
    """A DSSE line with top-level fields replaced, in the canonical spelling."""
    return canonical.dumps(json.loads(line) | changes)
