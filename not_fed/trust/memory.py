"""What this machine trusts, in one file that changes in one step; and the copy that it hands on.

    R/trusted/state.json            the pinned root, the newest roster ever accepted, and what was withdrawn since
    R/trusted/recalls/*.recall      the signed lines behind those withdrawals
    R/trusted/signed.json           a steward's: which draft was signed here last
    R/repository                    what is handed to others, on any medium; made anew from the state

A load reads state.json and nothing else, and verifies all of it again. An update verifies first, puts the lines of new
withdrawals in their places (nothing names them yet), then replaces state.json: that is the step. Then R/repository is
replaced as a whole; a kill before that leaves an older copy to hand on, which the next command mends.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from not_fed import canonical, files
from not_fed.errors import InputError, TrustError
from not_fed.trust import repository
from not_fed.trust.members import Name, Reason, Recall, RecallEntry, Sha256
from not_fed.trust.recall import SUFFIX, Withdrawal
from not_fed.trust.repository import ROOT_NAME, Material, RosterNotPinned

STATE: Final = "state.json"
SIGNED: Final = "signed.json"
MAX_STATE_BYTES: Final = 256_000_000
CLOCK_TOLERANCE: Final = timedelta(days=1)


class ClockSetBack(TrustError):
    """This machine's clock is behind the time at which it last accepted a roster."""

    code = "clock-set-back"


class _Strict(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")


class _Withdrawn(_Strict):
    line: Sha256
    organ_sha256: Sha256
    reason: Reason
    by: str
    time: str


class _Contents(_Strict):
    roster: str
    recalls: str
    plans: str | None = None


class _State(_Strict):
    format: Literal["not-fed.trusted/1"]
    roots: Annotated[list[str], Field(min_length=1)]
    timestamp: str
    snapshot: str
    targets: str
    contents: _Contents
    withdrawn: list[_Withdrawn]
    kept: list[RecallEntry]
    accepted: str
    runs: dict[Name, Sha256] = {}


class _Signed(_Strict):
    version: int
    draft: str
    root: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The state: a claim about what was verified once, and verified again at each load.

    `kept`: what stewards before today's recalled, and today's roster does not have.
    `runs`: of each run that ever had a plan here, the plan's digest: stewards after them can plan no other.
    """

    material: Material
    withdrawn: tuple[Withdrawal, ...]
    accepted: datetime
    kept: tuple[Recall, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)

    def check_clock(self, now: datetime) -> None:
        """Raises ClockSetBack: an old roster looks current to a clock that was set back."""
        if self.accepted - now > CLOCK_TOLERANCE:
            raise ClockSetBack(
                where="clock", expected=f"a time after {canonical.format_time(self.accepted)}",
                got=canonical.format_time(now), hint="set the clock; if it was wrong before, pin the roster again",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHere:
    """The newest draft that this machine's steward has signed, and the root that it stands on."""

    version: int
    draft: str
    root_sha256: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One change at a time in a roster folder; raises RosterNotPinned when this is none."""
    trusted = folder / "trusted"
    try:
        descriptor = os.open(trusted, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise not_pinned(trusted) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path) -> Memory:
    """What this machine trusts; raises RosterNotPinned: nothing, or a damaged file."""
    trusted = folder / "trusted"
    try:
        if trusted.is_symlink():
            raise not_pinned(trusted)
        data = files.read_regular(trusted / STATE, max_bytes=MAX_STATE_BYTES)
    except (InputError, OSError, ValueError):
        raise not_pinned(trusted) from None
    try:
        return _to_memory(_State.model_validate(json.loads(data)))
    except (ValidationError, ValueError, RecursionError):
        raise not_pinned(trusted, got="a damaged one") from None


def exists(folder: Path) -> bool:
    """Whether something is pinned."""
    return os.path.lexists(folder / "trusted" / STATE)


def write(folder: Path, memory: Memory, *, lines: Mapping[Withdrawal, bytes]) -> None:
    """Remember it: the lines first, then the one step."""
    recalls = folder / "trusted" / "recalls"
    recalls.mkdir(mode=0o700, exist_ok=True)
    for withdrawal, line in lines.items():
        files.write_atomic(recalls / f"{withdrawal.line_sha256}{SUFFIX}", line + b"\n", overwrite=True)
    material = memory.material
    state = _State(
        format="not-fed.trusted/1", roots=[data.decode() for data in material.roots],
        timestamp=material.timestamp.decode(), snapshot=material.snapshot.decode(), targets=material.targets.decode(),
        contents=_Contents(**{name.partition(".")[0]: data.decode() for name, data in material.contents.items()}),
        withdrawn=[
            _Withdrawn(line=each.line_sha256, organ_sha256=each.recall.organ_sha256, reason=each.recall.reason,
                       by=str(each.recall.by), time=canonical.format_time(each.recall.time))
            for each in memory.withdrawn
        ],
        kept=[
            RecallEntry(organ_sha256=each.organ_sha256, reason=each.reason, time=canonical.format_time(each.time))
            for each in memory.kept
        ],
        accepted=canonical.format_time(memory.accepted), runs=dict(memory.runs),
    )  # fmt: skip
    text = canonical.dumps(state.model_dump(exclude_defaults=True))  # without plans as it was before there were any
    files.write_atomic(folder / "trusted" / STATE, text, overwrite=True)


def hand_on(folder: Path, memory: Memory, *, older_roots: Mapping[str, bytes] | None = None) -> None:
    """Make R/repository what the state says, in one step; does nothing when it is already.

    Args:
        older_roots: for a newcomer who was told the digest of an earlier root than this machine was.
    """
    target = folder / "repository"
    wanted = repository.layout(memory.material)
    timestamp = repository.FolderSource(target).read("metadata", "timestamp.json")
    if timestamp == memory.material.timestamp and _recall_names(target) >= _wanted_names(memory):
        return
    kept = _older_roots(target, memory) if older_roots is None else older_roots
    with files.replace_folder(target) if target.exists() else files.new_folder(target) as part:
        for kind in ("metadata", "targets", "recalls"):
            (part / kind).mkdir()
        for name, data in {**kept, **wanted}.items():
            files.write_atomic(part / name, data, mode=0o644)
        for name in sorted(_wanted_names(memory)):
            _link(folder / "trusted" / "recalls" / name, part / "recalls" / name)
        for place in (part, *(part / kind for kind in ("metadata", "targets", "recalls"))):
            place.chmod(0o755)


def remember_signed(folder: Path, signed: SignedHere) -> None:
    """Note which draft was signed here, before its signatures leave this machine."""
    value = _Signed(version=signed.version, draft=signed.draft, root=signed.root_sha256)
    files.write_atomic(folder / "trusted" / SIGNED, canonical.dumps(value.model_dump()), overwrite=True)


def signed_here(folder: Path) -> SignedHere | None:
    """The newest draft signed here; None when there was none."""
    try:
        data = files.read_regular(folder / "trusted" / SIGNED, max_bytes=4096)
        value = _Signed.model_validate(canonical.loads(data, where=SIGNED))
    except (InputError, ValidationError):
        return None
    return SignedHere(version=value.version, draft=value.draft, root_sha256=value.root)


def not_pinned(trusted: Path, *, got: str = "none") -> RosterNotPinned:
    """The error for a folder without a state."""
    return RosterNotPinned(
        where=str(trusted), expected="a pinned root", got=got,
        hint="not-fed roster pin SOURCE --root-sha256 DIGEST --out R, with the digest from a steward",
    )  # fmt: skip


def older_roots_of(source: Path, *, before: int) -> dict[str, bytes]:
    """Roots before a version, as they lie in a repository; whoever pins one of them checks it by its digest."""
    found = {}
    for number in range(1, before):
        name = f"{number}.root.json"
        data = repository.FolderSource(source).read("metadata", name)
        if data is not None and len(data) <= repository.MAX_METADATA_BYTES:
            found[f"metadata/{name}"] = data
    return found


def _older_roots(target: Path, memory: Memory) -> dict[str, bytes]:
    first: Any = repository.parse_metadata(memory.material.roots[0]).signed.version
    return older_roots_of(target, before=first)


def _to_memory(state: _State) -> Memory:
    withdrawn = tuple(
        Withdrawal(
            line_sha256=each.line,
            recall=Recall(organ_sha256=each.organ_sha256, reason=each.reason, by=each.by,
                          time=canonical.parse_time(each.time)),
        )
        for each in state.withdrawn
    )  # fmt: skip
    material = Material(
        roots=tuple(text.encode() for text in state.roots), timestamp=state.timestamp.encode(),
        snapshot=state.snapshot.encode(), targets=state.targets.encode(),
        contents={
            f"{name}.json": text.encode() for name, text in state.contents.model_dump(exclude_none=True).items()
        },
    )  # fmt: skip
    return Memory(
        material=material, withdrawn=withdrawn, accepted=canonical.parse_time(state.accepted),
        kept=tuple(each.to_recall() for each in state.kept), runs=state.runs,
    )  # fmt: skip


def _wanted_names(memory: Memory) -> set[str]:
    return {f"{each.line_sha256}{SUFFIX}" for each in memory.withdrawn}


def _recall_names(target: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(target / "recalls")}
    except OSError:
        return set()


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where that cannot be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        files.write_atomic(target, files.read_regular(source, max_bytes=MAX_STATE_BYTES), mode=0o644)


__all__ = [
    "ROOT_NAME", "ClockSetBack", "Memory", "SignedHere", "exists", "hand_on", "locked", "older_roots_of", "read",
    "remember_signed", "signed_here", "write",
]  # fmt: skip
