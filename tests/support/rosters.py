"""A federation with three stewards, and the tools of whoever writes roster files by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from not_fed.errors import NotFedError
from not_fed.keys import Steward
from not_fed.keys.steward import StewardIdentity
from not_fed.trust import draft as drafts
from not_fed.trust.ceremony import Proposal, open_draft, propose, settle
from not_fed.trust.repository import SIGNED, signed_sha256
from not_fed.trust.roster import TrustedRoster, create_roster, load_roster, pin_roster, update_roster
from not_fed.trust.stewards import adding
from not_fed.trust.takeover import trusted
from tests.support.trust import FEDERATION, NOW, Site

NAMES = ("alice", "bob", "carol")


def steward_identity(steward: Steward) -> StewardIdentity:
    """What a steward shows the others."""
    return StewardIdentity(steward.name, steward.public, NOW)


@dataclass(frozen=True)
class Council:
    """Three stewards with a roster folder each, and a site that pinned their roster; all at version 1."""

    folder: Path
    stewards: tuple[Steward, ...]
    clinic: Site
    root_sha256: str

    @classmethod
    def make(cls, folder: Path, *, now: datetime = NOW) -> Council:
        """A new one."""
        folder.mkdir()
        stewards, clinic = tuple(Steward.generate(name) for name in NAMES), Site.make("clinic")
        digest = create_roster(
            folder / "alice", federation=FEDERATION, steward=stewards, members=[(clinic.public, ["author"])], now=now
        )
        for name in ("bob", "carol", "site"):
            pin_roster(folder / "alice", root_sha256=digest, out=folder / name, now=now)
        return cls(folder, stewards, clinic, digest)

    @property
    def site(self) -> Path:
        """Where the attacker wants its roster to be believed."""
        return self.folder / "site"

    def of(self, name: str) -> Path:
        """A steward's roster folder."""
        return self.folder / name

    def steward(self, name: str) -> Steward:
        """A steward's private keys."""
        return self.stewards[NAMES.index(name)]

    def propose(self, by: str = "alice", *, site: str = "north", sign: bool = True, now: datetime = NOW) -> Proposal:
        """A draft that enrols a new site, signed by one steward, in its R/draft."""
        edit = adding(Site.make(site).public, roles=["author"], now=now)
        proposal = propose(self.of(by), edit, now=now)
        if sign:
            proposal.sign(self.steward(by))
            assert settle(proposal, signed_by=self.steward(by)).roster is None
        return proposal

    def publish(self, *, by: Sequence[str] = ("alice", "bob"), now: datetime = NOW) -> TrustedRoster:
        """The honest control: the next version, signed by two people, in alice's folder, and it arrives."""
        edit = adding(Site.make(f"site-{load_roster(self.site, now=now).version}").public, roles=["author"], now=now)
        proposal = propose(self.of("alice"), edit, now=now)
        for name in by:
            proposal.sign(self.steward(name), instead=True)
        assert settle(proposal, signed_by=None).roster is not None
        return update_roster(self.site, source=self.of("alice"), now=now)


def state(folder: Path) -> dict[str, bytes]:
    """All that a machine remembers."""
    return {str(path): path.read_bytes() for path in sorted((folder / "trusted").rglob("*")) if path.is_file()}


def assert_refused(
    site: Path, kind: type[NotFedError] | tuple[type[NotFedError], ...], source: Path, *, now: datetime = NOW
) -> NotFedError:
    """Taking `source` over raises `kind`; what the site trusted before is still what it trusts."""
    before, version = state(site), load_roster(site, now=NOW).version
    with pytest.raises(kind) as caught:
        update_roster(site, source=source, now=now)
    assert state(site) == before
    assert load_roster(site, now=NOW).version == version
    return caught.value


def signers(stewards: Iterable[Steward], *, algorithms: Sequence[int] = (0, 1)) -> list[CryptoSigner]:
    """Their keys, of one algorithm (0 Ed25519, 1 ML-DSA-65) or both."""
    return [CryptoSigner(steward.private_keys()[algorithm]) for steward in stewards for algorithm in algorithms]


def resign(path: Path, keys: Iterable[CryptoSigner], change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a metadata file's signed part and sign it again with these keys only."""
    value = json.loads(path.read_bytes())
    change(value["signed"])
    metadata: Metadata[Any] = Metadata.from_dict(value)
    metadata.signatures.clear()
    for key in keys:
        metadata.sign(key, append=True)
    path.write_bytes(metadata.to_bytes())


def newer(repository: Path, keys: Iterable[CryptoSigner], *, by: int = 1) -> None:
    """A timestamp of a later version over the same roster, signed by these keys."""

    def raise_version(signed: dict[str, Any]) -> None:
        signed["version"] += by

    resign(repository / "metadata" / "timestamp.json", keys, raise_version)


def forge_draft(
    source: Path, target: Path, keys: Iterable[CryptoSigner], change: Callable[[dict[str, dict[str, Any]]], None]
) -> None:
    """A copy of a draft with anything changed in its signed parts, bound together again and signed by these keys."""
    parts = {path.name.removesuffix(".json").split(".")[-1]: path for path in (source / "metadata").iterdir()}
    values = {name: json.loads(path.read_bytes())["signed"] for name, path in parts.items()}
    change(values)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for path in (target / "metadata").iterdir():
        path.unlink()
    keys = list(keys)

    def write(name: str) -> str:
        signed = values[name]
        metadata: Metadata[Any] = Metadata.from_dict({"signed": json.loads(json.dumps(signed)), "signatures": []})
        for key in keys:
            metadata.sign(key, append=True)
        file = "timestamp.json" if name == "timestamp" else f"{signed['version']}.{name}.json"
        (target / "metadata" / file).write_bytes(metadata.to_bytes())
        return signed_sha256(metadata)

    if "root" in values:
        write("root")
    values["snapshot"][SIGNED] = write("targets")
    values["timestamp"][SIGNED] = write("snapshot")
    write("timestamp")


def published_draft(council: Council, proposal: Proposal, folder: Path) -> Path:
    """The files of a proposal, whoever has signed it, as somebody could hand them to a site."""
    drafts.write_draft(folder, proposal.draft)
    assert trusted(council.site, now=NOW)[1].targets.version == proposal.draft.version - 1
    return folder


def stick(council: Council) -> Path:
    """Alice's draft, as it is carried about."""
    return council.of("alice") / "draft"


def assert_not_signed(council: Council, draft: Path, kind: type[NotFedError] | tuple[type[NotFedError], ...]) -> None:
    """Bob's machine refuses the draft before it shows anything; nothing of bob's changes."""
    before = state(council.of("bob"))
    with pytest.raises(kind):
        open_draft(council.of("bob"), draft=draft, now=NOW)
    assert state(council.of("bob")) == before


def assert_signs(council: Council, draft: Path, *, by: str = "bob") -> None:
    """The honest control: that steward signs it, and it is published and arrives at the site."""
    proposal = open_draft(council.of(by), draft=draft, now=NOW)
    proposal.sign(council.steward(by), instead=True)
    roster = settle(proposal, signed_by=council.steward(by)).roster
    assert roster is not None
    assert update_roster(council.site, source=council.of(by), now=NOW) == roster
