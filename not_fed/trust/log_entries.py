"""What the log has as leaves: that a label, a roster version or a recall exists. A digest each, never content.

    not-fed.log/v1 seal|roster|recall <64 hex digits>

The digest is over the bytes that were signed: the DSSE payload of a label or recall, the `N.targets.json` of a roster.
The log says that it has seen them, not that their signatures hold; whoever opens an organ checks those anyway.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from not_fed import canonical, files
from not_fed.errors import InputError, NotFedError
from not_fed.keys import dsse

Kind = Literal["seal", "roster", "recall"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
PAYLOAD_TYPES: Final[dict[str, Kind]] = {
    "application/vnd.not-fed.label.v1+json": "seal",
    "application/vnd.not-fed.recall.v1+json": "recall",
}
MAX_ENTRY_BYTES: Final = len(b"not-fed.log/v1 recall ") + 64
MAX_FILE_BYTES: Final = 5_000_000
_ENTRY = re.compile(r"not-fed\.log/v1 (seal|roster|recall) ([0-9a-f]{64})")
_TARGETS = re.compile(r"([1-9][0-9]{0,8})\.targets\.json")


class BadEntry(InputError):
    """The log takes digests of labels, roster versions and recalls, and nothing else."""

    code = "bad-log-entry"


class NotLoggable(InputError):
    """This file is neither a label nor a recall nor a version of a roster."""

    code = "not-loggable"


@dataclass(frozen=True, slots=True)
class Logged:
    """A file and the entry that stands for it."""

    file: Path
    kind: Kind
    digest: str

    @property
    def entry(self) -> bytes:
        """The leaf."""
        return entry(self.kind, self.digest)


def entry(kind: Kind, digest: str) -> bytes:
    """The leaf for a digest; raises BadEntry.

    >>> entry("seal", "ab" * 32)[:22]
    b'not-fed.log/v1 seal ab'
    """
    return check_entry(f"not-fed.log/v1 {kind} {digest}".encode())


def check_entry(data: bytes) -> bytes:
    """`data` itself when it is a leaf of ours; raises BadEntry."""
    if len(data) > MAX_ENTRY_BYTES or not _ENTRY.fullmatch(data.decode("latin-1")):
        raise BadEntry(
            where="log entry", expected="not-fed.log/v1 seal|roster|recall and 64 hex digits",
            got=f"{len(data)} bytes of another form", hint="use not_fed.trust.log.entry",
        )  # fmt: skip
    return data


def kind_of(leaf: bytes) -> Kind:
    """What a leaf stands for; raises BadEntry."""
    word = check_entry(leaf).split(b" ")[1].decode()
    return next(kind for kind in KINDS if kind == word)


def entry_of(path: Path) -> Logged:
    """The entry for a label, a recall, a `N.targets.json`, or the newest version in a roster folder.

    Raises:
        NotLoggable, NotAFile, FileTooLarge; MalformedSigned: it looks like a signed line and is not one.
    """
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises on odd names
        path = _newest_targets(path)
    data = files.read_regular(path, max_bytes=MAX_FILE_BYTES)
    if _TARGETS.fullmatch(path.name) and _is_targets(data):
        return Logged(path, "roster", hashlib.sha256(data).hexdigest())
    line = data.removesuffix(b"\n")
    for payload_type, kind in PAYLOAD_TYPES.items():
        if _payload_type(line) == payload_type:
            payload = dsse.parse(line, payload_type=payload_type, where=path.name).payload
            return Logged(path, kind, hashlib.sha256(payload).hexdigest())
    raise _not_loggable(path)


def _newest_targets(folder: Path) -> Path:
    for place in (folder / "repository" / "metadata", folder / "metadata"):
        found = [(int(match[1]), item) for item in place.glob("*.json") if (match := _TARGETS.fullmatch(item.name))]
        if found:
            return max(found)[1]
    raise _not_loggable(folder)


def _payload_type(line: bytes) -> str | None:
    """What a JSON line says that it is; only to choose how it is then read."""
    try:
        value = canonical.loads(line, where="line")
    except NotFedError:
        return None
    found = value.get("payloadType") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _is_targets(data: bytes) -> bool:
    try:
        value = canonical.loads(data, where="targets")
    except NotFedError:
        return False
    signed = value.get("signed") if isinstance(value, dict) else None
    return isinstance(signed, dict) and signed.get("_type") == "targets"


def _not_loggable(path: Path) -> NotLoggable:
    return NotLoggable(
        where=str(path), expected="a .label, a .recall, a roster folder or its N.targets.json", got="something else",
        hint="for a sealed organ S, give its label: S.label",
    )  # fmt: skip
