"""The frozen vectors as objects: the sealed bytes, and both readers' view of who reads and whom they trust."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from not_fed import canonical
from not_fed.age import HybridIdentity
from not_fed.envelope import Expectation
from not_fed.keys import Opener
from not_fed.trust.members import Recall, TrustedRoster, read_roster
from tests.support import second_reader, second_writer

FOLDER = Path(__file__).parents[1] / "vectors"
SEALED, SIGNED, ORGANS = (FOLDER / name for name in ("sealed-v1", "signed-v1", "organ-v1"))
MEMBERS = FOLDER / "members.json"
SUMS = FOLDER / "SHA256SUMS"
LINE_FEED = 10
KEY_FIELDS = ("ed25519", "ml_dsa_65", "seal")


@dataclass(frozen=True)
class Vector:
    """One case."""

    name: str
    content: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Vector:
        """From its file."""
        return cls(path.stem, json.loads(path.read_bytes()))

    @property
    def expected(self) -> str:
        """`opened`, or an error code."""
        expect: Mapping[str, str] = self.content["expect"]
        return expect.get("code", expect["verdict"])

    @property
    def now(self) -> datetime:
        """The reader's clock."""
        return canonical.parse_time(self.content["now"])

    @property
    def label(self) -> bytes | None:
        """The label's line."""
        said = self.content["label"]
        return None if said is None else unpack(said)

    def sealed(self) -> bytes:
        """The sealed file; made from its plaintext where the file itself would be too large to keep."""
        said = self.content["sealed"]
        if "plain" not in said:
            return unpack(said)
        key, nonce = (bytes.fromhex(said[name]) for name in ("file_key", "nonce"))
        plain = b"".join(unpack(part) for part in said["plain"])
        sealed = unpack(said["header"]) + nonce + second_writer.payload(key, nonce, plain)
        assert hashlib.sha256(sealed).hexdigest() == said["sha256"], f"{self.name}: not the file that was frozen"
        return sealed

    def entries(self) -> list[dict[str, Any]]:
        """The members as `roster.json` has them."""
        return [with_keys(entry) for entry in self.content["roster"]["members"]]

    def roster(self) -> TrustedRoster:
        """What the library trusts."""
        said = self.content["roster"]
        roster = {"format": "not-fed.roster/1", "federation": said["federation"], "members": self.entries()}
        stewards = [
            {"organ_sha256": recall["organ_sha256"], "reason": recall["reason"], "time": second_writer.ISSUED}
            for recall in said["recalls"]
            if recall["by"] is None
        ]
        members = [Recall(**recall, time=self.now) for recall in said["recalls"] if recall["by"] is not None]
        return read_roster(
            canonical.dumps(roster), canonical.dumps({"format": "not-fed.recalls/1", "recalls": stewards}),
            withdrawn=members, version=said["version"], expires_at=canonical.parse_time(said["expires"]),
        )  # fmt: skip

    def opener(self) -> Opener | None:
        """The library's view of who reads; None without a key."""
        name = self.content["reader"]
        if not name:
            return None
        one, *others = (HybridIdentity.from_text(text) for text in self.identities())
        return Opener(name=name, identity=one, retired=tuple(others))

    def identities(self) -> tuple[str, ...]:
        """The reader's identity lines, the one in use first."""
        words = [self.content["reader"], *self.content["retired"]] if self.content["reader"] else []
        return tuple(members()[word]["identity"] for word in words)

    def expectation(self) -> Expectation:
        """What was asked for."""
        ask = self.content["ask"]
        return Expectation(
            federation=ask.get("federation"), round_number=ask.get("round"), base_sha256=ask.get("base_sha256"),
            span=tuple(ask["span"]) if "span" in ask else None, family=ask.get("family"),
        )  # fmt: skip

    def second_reader(self) -> second_reader.Reader:
        """The second reader's view; plain data."""
        name, said = self.content["reader"], self.content["roster"]
        roster = {"federation": said["federation"], "members": self.entries(), "recalls": said["recalls"]}
        return second_reader.Reader(
            name=name or "", identities=self.identities(), roster=roster, now=self.now,
            ask=self.content["ask"], seen=frozenset(self.content["seen"]),
        )  # fmt: skip


def with_keys(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A roster entry whose `keys` are the keys themselves; so in what it had formerly."""
    rest = {name: value for name, value in entry.items() if name not in ("keys", "former")}
    keys = {name: members()[entry["keys"]][name] for name in KEY_FIELDS}
    former = {"former": [with_keys(old) for old in entry["former"]]} if "former" in entry else {}
    return {**rest, **keys, **former}


@cache
def members() -> Mapping[str, Mapping[str, str]]:
    """Everybody's keys, by the word that they follow from."""
    found: Mapping[str, Mapping[str, str]] = json.loads(MEMBERS.read_bytes())
    return found


def files_in(folder: Path) -> list[Path]:
    """Every case; anything else in the folder is an error, so that no file lies there untested."""
    paths = sorted(folder.iterdir())
    odd = [path.name for path in paths if path.suffix != ".json" or not path.is_file()]
    assert not odd, f"not a vector: {odd}"
    return paths


def unpack(said: Mapping[str, str]) -> bytes:
    """Bytes from `{"base64": ...}`, `{"gzip": ...}` or `{"text": ...}`."""
    ((kind, text),) = said.items()
    if kind == "text":
        return text.encode("ascii")
    data = base64.b64decode(text, validate=True)
    return gzip.decompress(data) if kind == "gzip" else data


def pack(data: bytes) -> dict[str, str]:
    """Readable where it can be, and short where it cannot."""
    if len(data) < 8000 and all(32 <= byte < 127 or byte == LINE_FEED for byte in data):
        return {"text": data.decode("ascii")}
    small = gzip.compress(data, mtime=0)
    if len(small) < len(data) * 3 // 4:
        return {"gzip": base64.b64encode(small).decode()}
    return {"base64": base64.b64encode(data).decode()}
