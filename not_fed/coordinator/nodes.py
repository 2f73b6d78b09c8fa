"""Which connection may be which site: the enrolments that this coordinator's administrator took in.

HOME/nodes/<site>.enrolment       the signed line, checked again whenever it is read
HOME/nodes/<site>.identity.json   the identity in it, for the stewards

An enrolment opens the gateway only while the stewards' roster has that site, with the very keys that signed the
enrolment, as an active author: a name alone opens nothing, and a revocation closes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from not_fed import files
from not_fed.canonical import format_time
from not_fed.envelope.enrolment import MAX_ENROLMENT_BYTES, Enrolment, enrolment_fingerprint, refused, verify_enrolment
from not_fed.errors import InputError, TrustError
from not_fed.keys import PublicIdentity
from not_fed.keys.node_key import node_key_id
from not_fed.trust.members import CLOCK_SKEW
from not_fed.trust.roster import TrustedRoster

FOLDER = "nodes"
_SUFFIX = ".enrolment"


class EnrolmentDiffers(TrustError):
    """A site of this name, or with this key, is enrolled already."""

    code = "enrolment-differs"


class WrongFederation(InputError):
    """This enrolment is for another federation or bears a name that is taken."""

    code = "enrolment-elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """One site that this coordinator's administrator took in."""

    enrolment: Enrolment
    identity: PublicIdentity
    key_id: str
    fingerprint: str


class Nodes:
    """The enrolled sites of the coordinator at `home`; safe to share between threads, and sees what others add."""

    def __init__(self, home: Path) -> None:
        self.folder = home / FOLDER
        self._known: tuple[object, Mapping[str, Enrolled]] = (None, {})

    def enrol(
        self, line: bytes, *, federation: str, coordinator: str, now: datetime, where: str = "enrolment",
        replace: bool = False,
    ) -> Enrolled:  # fmt: skip
        """Take a site in; the same enrolment twice is once.

        Args:
            replace: let it take the place of another enrolment of the same name: a site with new keys.
        Raises:
            MalformedSigned, NewerFormat, EnrolmentRefused: as `verify_enrolment`; or it is from the future.
            WrongFederation: for another federation, or it bears the coordinator's own name.
            EnrolmentDiffers: another site has this key, or this name is enrolled with other keys.
        Proved by: tests/attacks/test_enrolment.py::test_a_second_site_of_the_same_name_does_not_replace_the_first
        """
        line = line.removesuffix(b"\n")
        new = _read(line, where=where)
        said = new.enrolment
        if said.federation != federation or said.site == coordinator:
            raise WrongFederation(
                where=where, expected=f"a site of federation {federation}, not named {coordinator}",
                got=f"{said.site} of {said.federation}", hint="nobody was enrolled; ask the site",
            )  # fmt: skip
        if said.issued - now > CLOCK_SKEW:
            raise refused(where, f"a date that has not come, {format_time(said.issued)}: the clocks differ")
        self._refuse_others(new, where=where, replace=replace)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        identity = self.identity_path(said.site)
        files.write_atomic(identity, said.identity.encode() + b"\n", overwrite=True, mode=0o644)
        files.write_atomic(self.folder / f"{said.site}{_SUFFIX}", line + b"\n", overwrite=True)
        return new

    def identity_path(self, site: str) -> Path:
        """The file that stewards need: `roster create R --member FILE:author,receiver`."""
        return self.folder / f"{site}.identity.json"

    def enrolled(self) -> Mapping[str, Enrolled]:
        """Site -> its enrolment, by name; read again when the folder has changed.

        Raises:
            what `verify_enrolment` raises: an altered file is never skipped silently.
        """
        stamp, known = self._known
        now = self._stamp()
        if now is None:
            return {}
        if now != stamp:
            known = {path.name.removesuffix(_SUFFIX): _load(path) for path in sorted(self.folder.glob(f"*{_SUFFIX}"))}
            self._known = (now, known)
        return known

    def all(self) -> dict[str, str]:
        """Site -> the public key of its connection, as OpenSSH text."""
        return {site: one.enrolment.node_key for site, one in self.enrolled().items()}

    def site_of(self, key_id: str) -> str | None:
        """The enrolled site whose connection has this key."""
        return next((site for site, one in self.enrolled().items() if one.key_id == key_id), None)

    def admitted(self, site: str, roster: TrustedRoster, now: datetime) -> bool:
        """Whether this site's connection may be used now.

        Proved by: tests/attacks/test_enrolment.py::test_a_name_on_the_roster_with_other_keys_opens_nothing
        """
        return self.why_not(site, roster, now) is None

    def why_not(self, site: str, roster: TrustedRoster, now: datetime) -> str | None:
        """What keeps a site out, for a person; None when nothing does."""
        enrolled, member = self.enrolled().get(site), roster.members.get(site)
        if enrolled is None:
            return "not enrolled here"
        if member is None:
            return f"not in roster version {roster.version}"
        if not member.active:
            return f"revoked in roster version {roster.version}"
        if not member.is_current(now):
            return f"its membership is over or has not begun: until {format_time(member.not_after)}"
        if "author" not in member.roles:
            return f"no author in roster version {roster.version}"
        if enrolled.identity.signing not in (member.signing, *(old.signing for old in member.former)):
            return f"enrolled here with other keys than roster version {roster.version} has"
        return None

    def _refuse_others(self, new: Enrolled, *, where: str, replace: bool) -> None:
        site = new.enrolment.site
        for name, known in self.enrolled().items():
            if name != site and known.key_id == new.key_id:
                raise _differs(where, expected="a key that no other site has", got=f"the key of {name}")
            if name == site and known.fingerprint != new.fingerprint and not replace:
                raise _differs(
                    where, expected=f"the enrolment of {site} that is here already", got="one with other keys"
                )

    def _stamp(self) -> object:
        """Changes whenever a file appears, goes or is replaced: each of them is a rename in this folder."""
        try:
            status = self.folder.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def _load(path: Path) -> Enrolled:
    line = files.read_regular(path, max_bytes=MAX_ENROLMENT_BYTES).removesuffix(b"\n")
    found = _read(line, where=path.name)
    if found.enrolment.site != path.name.removesuffix(_SUFFIX):
        raise refused(path.name, "one of another site")
    return found


def _read(line: bytes, *, where: str) -> Enrolled:
    enrolment, identity = verify_enrolment(line, where=where)
    return Enrolled(
        enrolment=enrolment, identity=identity, key_id=node_key_id(enrolment.node_key),
        fingerprint=enrolment_fingerprint(line, where=where),
    )  # fmt: skip


def _differs(where: str, *, expected: str, got: str) -> EnrolmentDiffers:
    return EnrolmentDiffers(
        where=where, expected=expected, got=got,
        hint="nobody was enrolled; compare fingerprints by telephone; a site that has new keys: --replace",
    )  # fmt: skip
