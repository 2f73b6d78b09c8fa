"""A log's keeper with real keys, logs on disk, a roster that knows the log; and notes that say and carry anything."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from not_fed.keys import LogKeys, LogSigner
from not_fed.trust.log import SignedCheckpoint, entry, verify_proof
from not_fed.trust.log_folder import LogFolder, append_many, create_log
from not_fed.trust.log_memory import Compared, remember, remember_folder
from not_fed.trust.log_proof import Consistency, read_consistency
from not_fed.trust.members import TrustedRoster
from tests.support.trust import FEDERATION, NOW, Federation

ORIGIN = f"not-fed/{FEDERATION}/hub"


def leaf(number: int, word: str = "seal") -> bytes:
    """An entry of the log."""
    digest = hashlib.sha256(f"{word} {number}".encode()).hexdigest()
    return entry("seal", digest)


def leaves(start: int, stop: int, word: str = "seal") -> list[bytes]:
    """Entries in a row."""
    return [leaf(number, word) for number in range(start, stop)]


@dataclass
class Keeper:
    """Who keeps a log, or pretends to: appends honestly, and signs any note it likes."""

    folder: Path
    signer: LogSigner = field(default_factory=lambda: LogSigner.generate("hub"))
    federation: str = FEDERATION
    now: datetime = NOW

    def __post_init__(self) -> None:
        if not self.folder.exists():
            create_log(self.folder, federation=self.federation, signer=self.signer, now=self.now)

    @property
    def keys(self) -> LogKeys:
        """The public half."""
        return self.signer.public

    @property
    def note(self) -> bytes:
        """The newest checkpoint."""
        return (self.folder / "checkpoint").read_bytes()

    def add(self, *entries: bytes, now: datetime | None = None) -> list[int]:
        """Append, as an honest keeper does."""
        return append_many(self.folder, entries, signer=self.signer, now=now or self.now)

    def log(self) -> LogFolder:
        """What a reader sees."""
        return LogFolder(self.folder)

    def consistency(self, old_size: int) -> Consistency:
        """The proof that it grew, as it travels."""
        return read_consistency(self.log().consistency_text(old_size))

    def verify(self, proof: bytes, entry: bytes, *, now: datetime = NOW) -> SignedCheckpoint:
        """What a site does with a proof of this log."""
        return verify_proof(proof, entry=entry, keys=self.keys, origin=ORIGIN, now=now)

    def told(self, site: Path, *, consistency: Consistency | None = None, now: datetime = NOW) -> Compared:
        """A site hears of the newest checkpoint."""
        return remember(site, self.note, keys=self.keys, origin=ORIGIN, now=now, consistency=consistency)

    def handed_over(self, site: Path, *, now: datetime = NOW) -> Compared:
        """A site gets the whole folder on a stick."""
        return remember_folder(site, self.log(), keys=self.keys, origin=ORIGIN, now=now)

    def signed_note(
        self, *, size: int | str = 1, root: bytes = b"\x11" * 32, origin: str = ORIGIN, name: str | None = None,
        timestamp: int | None = None, lines: str = "", cosigned_size: int | None = None, start: int = 0,
        cosigner: str | None = None, cosigned_root: bytes | None = None,
    ) -> bytes:  # fmt: skip
        """A note with both real signatures over whatever it says, written here from the C2SP text."""
        name = origin if name is None else name
        stamp = int(NOW.timestamp()) if timestamp is None else timestamp
        text = f"{origin}\n{size}\n{b64(root)}\n{lines}".encode()
        end = cosigned_size if cosigned_size is not None else size if isinstance(size, int) else 0
        message = cosigned(cosigner or name, stamp, origin=origin, start=start, end=end, root=cosigned_root or root)
        return note(text, [
            (name, b"\x01", self.keys.ed25519, self.signer.sign_ed25519(text)),
            (name, b"\x06", self.keys.ml_dsa_44, struct.pack(">Q", stamp) + self.signer.sign_ml_dsa_44(message)),
        ])  # fmt: skip


def cosigned(cosigner: str, stamp: int, *, origin: str, start: int, end: int, root: bytes) -> bytes:
    """`cosigned_message` of c2sp.org/tlog-cosignature, field by field."""
    names = [text.encode() for text in (cosigner, origin)]
    return (
        b"subtree/v1\n\x00" + struct.pack(">B", len(names[0])) + names[0] + struct.pack(">Q", stamp)
        + struct.pack(">B", len(names[1])) + names[1] + struct.pack(">QQ", start, end) + root
    )  # fmt: skip


def note(text: bytes, signatures: Sequence[tuple[str, bytes, bytes, bytes]]) -> bytes:
    """A signed note: (key name, type byte, public key, signature) for each line."""
    return text + b"\n" + b"".join(signature_line(*signature) for signature in signatures)


def signature_line(name: str, kind: bytes, public: bytes, signature: bytes) -> bytes:
    """One line, with the key id that c2sp.org/signed-note recommends."""
    key_id = hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]
    return f"\N{EM DASH} {name} {b64(key_id + signature)}\n".encode()


def b64(raw: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(raw).decode()


def roster_with_log(federation: Federation, keys: LogKeys, *, member: str = "hub") -> TrustedRoster:
    """The federation's roster, in which a member has log keys."""
    members = federation.roster.members
    return replace(federation.roster, members={**members, member: replace(members[member], log=keys)})


def site(folder: Path) -> Path:
    """A roster folder as far as the log's memory is concerned."""
    (folder / "trusted").mkdir(parents=True, mode=0o700)
    return folder


def memory(folder: Path) -> dict[str, bytes]:
    """What a site remembers of logs."""
    return {path.name: path.read_bytes() for path in (folder / "trusted").glob("log.*.checkpoint")}


def evidence(folder: Path) -> list[Path]:
    """What a site keeps of contradictions, in order."""
    return sorted((folder / "trusted").glob("log.evidence.*"), key=lambda path: int(path.name.rpartition(".")[2]))
