"""What a vector says beside its bytes, and the tools that put one fault into them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.second_reader import WAYBILL, pae
from tests.support.second_writer import Draft, Party, Written, canonical, line_of

MAIN = ("clinic", "hub", "lab", "relay")
CHUNK = 65_536
Change = Callable[[bytes], bytes]
AUDIT = {"method": "one-run audit", "epsilon_lower_bound": 0.4, "confidence": 0.95, "canaries": 1000}
MECHANISM = {
    "sample_rate": 0.01, "steps": 1000, "runs": 1, "noise_multiplier": 1.1, "max_grad_norm": 1, "divisor": 200,
    "adjacency": "add_or_remove_one", "noise_added_at": "site",
}  # fmt: skip
CHARGED = {"name": "mean_loss", "noise_multiplier": 10}
NOISED = CHARGED | {"value": 2.25, "how": "noised", "sensitivity": 4, "divisor": 340}
PUBLIC = {"name": "records", "value": 340, "how": "public"}
FOUND = AUDIT | {
    "delta": 1e-5, "fdp_epsilon_lower_bound": 0.5, "expected_at_most": 0.9, "fdp_expected_at_most": 1.1,
    "noise_ratio": 1.001, "steps": 20, "verdict": "consistent",
}  # fmt: skip
DP = {"epsilon": 3.1, "delta": 1e-5, "unit": "record", "accountant": "PLD", "mechanism": MECHANISM}
FOR_PEOPLE = {
    "records_per_person": 4, "repeated_steps": 3, "releases": [CHARGED], "repeated_releases": {"mean_loss": 1},
}  # fmt: skip
PERSON: dict[str, Any] = DP | {"unit": "person", "mechanism": MECHANISM | FOR_PEOPLE}


@dataclass(frozen=True, kw_only=True)
class SealedCase:
    """A sealed file, who opens it, and how that ends."""

    name: str
    about: str
    code: str | None = None
    draft: Draft
    alter: Callable[[Written], Written] = lambda written: written
    reader: str | None = "hub"
    now: str | None = None
    members: Sequence[str] = MAIN[:3]
    roster: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recalls: Sequence[Mapping[str, str | None]] = ()
    retired: Sequence[str] = ()
    ask: Mapping[str, Any] = field(default_factory=dict)
    seen: Sequence[str] = ()

    def write(self) -> Written:
        """The sealed file and its label."""
        return self.alter(self.draft.write())


def case(name: str, about: str, code: str | None = None, **parts: Any) -> SealedCase:  # noqa: ANN401
    """One case; what SealedCase does not know belongs to the draft."""
    own = {key: parts.pop(key) for key in list(parts) if key in SealedCase.__dataclass_fields__}
    return SealedCase(name=name, about=about, code=code, draft=Draft(**parts), **own)


def swap(old: str, new: str) -> Change:
    """Replace once what must be there."""

    def change(body: bytes) -> bytes:
        assert old.encode() in body, old
        return body.replace(old.encode(), new.encode(), 1)

    return change


def fields(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the fields of a signed line."""

    def edit(raw: bytes) -> bytes:
        value = json.loads(raw)
        return canonical(change(value) or value)

    return edit


def noise(place: int) -> Change:
    """One of the two signatures replaced by random bytes of its length."""

    def change(value: dict[str, Any]) -> None:
        entry = value["signatures"][place]
        entry["sig"] = base64.b64encode(os.urandom(len(base64.b64decode(entry["sig"])))).decode()

    return fields(change)


def shorter(text: str) -> str:
    """base64 of a byte less."""
    return base64.b64encode(base64.b64decode(text)[:-1]).decode()


def payload_of(line: bytes) -> bytes:
    """What a line says."""
    return base64.b64decode(json.loads(line)["payload"])


def repacked(change: Change) -> Change:
    """Another payload under the same signatures."""

    def edit(line: bytes) -> bytes:
        body = payload_of(line)
        assert change(body) != body
        return canonical(json.loads(line) | {"payload": base64.b64encode(change(body)).decode()})

    return edit


def mixed(first: Party, second: Party) -> Change:
    """A waybill with Ed25519 by one, ML-DSA-65 by another."""

    def change(line: bytes) -> bytes:
        body = payload_of(line)
        message = pae(WAYBILL, body)
        signatures = (first.signing[0].sign(message), second.signing[1].sign(message))
        return line_of(body, WAYBILL, (first.public[0], second.public[1]), signatures)

    return change


def loosely(body: bytes) -> bytes:
    """The same JSON, written by somebody who likes white space, another order and escapes."""
    text = json.dumps(dict(reversed(json.loads(body).items())), indent=1)
    return text.replace("lowlands", "low\\u006Cands").encode() + b"\r\n\t "
