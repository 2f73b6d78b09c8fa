"""Make the frozen vectors of docs/format.md that are not there yet; whatever is there is never written again.

    .venv/bin/python -m tools.make_vectors

A vector is what some implementation once produced: signatures and encapsulations are random, so nothing here could make
the same file twice. New cases are added in `tests/support/vector_cases`; SHA256SUMS only ever grows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import vector_cases
from tests.support.second_writer import EXPIRES, ISSUED, NOW, Party, Written, bech32, payload
from tests.support.vector_cases.base import SealedCase
from tests.support.vector_cases.organs import OrganCase
from tests.support.vector_cases.signed import SignedCase
from tests.support.vectors import FOLDER, MEMBERS, ORGANS, SEALED, SIGNED, SUMS, pack

ROLES = {"hub": ["aggregator", "receiver"], "relay": ["relay"]}
MEMBERSHIP = {"not_before": ISSUED, "not_after": "2027-11-24T12:00:00Z"}
LARGE = 60_000  # bytes; what is larger is kept as what it was made from, if it was made honestly


def main() -> None:
    """Write what is missing."""
    made = []
    if not MEMBERS.exists():
        made.append(write_new(MEMBERS, {word: keys_of(Party(word)) for word in vector_cases.PARTIES}))
    made += missing(SEALED, ((case.name, partial(sealed, case)) for case in vector_cases.sealed()))
    made += missing(SIGNED, ((case.name, partial(signed, case)) for case in vector_cases.signed.cases()))
    made += missing(ORGANS, ((case.name, partial(organ, case)) for case in vector_cases.organs.cases()))
    freeze(made)
    sys.stderr.write(f"make_vectors: {len(made)} new\n")


def missing(folder: Path, wanted: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]]) -> list[Path]:
    """Write the cases of one folder that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_new(folder / f"{name}.json", content())
        for name, content in wanted
        if not (folder / f"{name}.json").exists()
    ]


def write_new(path: Path, content: Mapping[str, Any]) -> Path:
    """A JSON file that must not exist, a line for each field."""
    with path.open("x", encoding="utf-8") as file:
        lines = (f"{json.dumps(key)}: {json.dumps(content[key], sort_keys=True)}" for key in sorted(content))
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def freeze(paths: list[Path]) -> None:
    """Add the digests of new files to SHA256SUMS; `sha256sum -c SHA256SUMS` reads it."""
    with SUMS.open("a", encoding="utf-8") as file:
        for path in paths:
            file.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER)}\n")


def keys_of(party: Party) -> dict[str, Any]:
    """Seeds and public keys."""
    ed25519, ml_dsa_65 = party.public
    return {
        "identity": party.identity, "seal": bech32("age1pq", party.seal),
        "ed25519": base64.b64encode(ed25519).decode(), "ml_dsa_65": base64.b64encode(ml_dsa_65).decode(),
        "seeds": {name.replace("-", "_"): party.seed(name).hex() for name in ("ed25519", "ml-dsa-65", "seal")},
    }  # fmt: skip


def sealed(case: SealedCase) -> dict[str, Any]:
    """The case as its file has it."""
    written = case.write()
    expect: dict[str, str] = {"verdict": "refused", "code": case.code} if case.code else {"verdict": "opened"}
    if not case.code and case.reader:
        expect["organ_sha256"] = hashlib.sha256(case.draft.organ).hexdigest()
    return {
        "about": case.about, "expect": expect, "reader": case.reader, "retired": list(case.retired),
        "now": case.now or NOW,
        "roster": {
            "federation": "lowlands", "version": 7, "expires": EXPIRES, "recalls": list(case.recalls),
            "members": [member(name, case) for name in case.members],
        },
        "sealed": contents(written), "label": None if written.label is None else pack(written.label),
        "ask": dict(case.ask), "seen": list(case.seen),
    }  # fmt: skip


def signed(case: SignedCase) -> dict[str, Any]:
    """A line, or a payload that whoever tests signs first."""
    form = {"line": pack(case.line)} if case.line is not None else {"payload": pack(case.payload or b"")}
    return {"about": case.about, "kind": case.kind, "expect": verdict(case.code, "well-formed"), **form}


def organ(case: OrganCase) -> dict[str, Any]:
    """An organ file, and the span that its passport claims."""
    return {"about": case.about, "expect": verdict(case.code, "opened"), "span": case.span, "organ": pack(case.organ)}


def verdict(code: str | None, otherwise: str) -> dict[str, str]:
    """How it ends."""
    return {"verdict": "refused", "code": code} if code else {"verdict": otherwise}


def member(name: str, case: SealedCase) -> dict[str, Any]:
    """A roster entry, with what this case changes in it."""
    entry = {"name": name, "keys": name, "roles": ROLES.get(name, ["author", "receiver"]), "status": "active"}
    return entry | MEMBERSHIP | {"former": [], "log": None} | dict(case.roster.get(name, {}))


def contents(written: Written) -> dict[str, Any]:
    """The file; a large one by what it was made from, as the header cannot be made again and the rest can."""
    whole = written.header + written.nonce + payload(written.file_key, written.nonce, written.plain)
    if len(whole) < LARGE or written.sealed != whole:
        return pack(written.sealed)
    at = written.plain.find(b"\n", written.plain.index(b"\n") + 1) + 1
    return {
        "header": pack(written.header), "nonce": written.nonce.hex(), "file_key": written.file_key.hex(),
        "plain": [pack(part) for part in (written.plain[:at], written.plain[at:])],
        "sha256": hashlib.sha256(written.sealed).hexdigest(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
