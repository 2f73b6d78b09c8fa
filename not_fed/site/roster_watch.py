"""The newest roster, fetched from the coordinator and held against what this site trusts already.

The coordinator is only where it lies: what is not signed by enough of the stewards, is older, or leaves a recall out is
refused as it would be from any other source, and what was trusted before stays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from not_fed.errors import TrustError
from not_fed.home import Home
from not_fed.site.bank_client import BankClient
from not_fed.site.connection import Connection
from not_fed.trust.roster import RosterNotPinned, TrustedRoster, load_roster, pin_roster, root_sha256, update_roster

FOLDER = "roster"
PATIENCE_S = 15.0


class OtherRoot(TrustError):
    """This site trusts another roster than the one that was named."""

    code = "other-root"


def is_pinned(home: Path) -> bool:
    """Whether this site trusts a roster already."""
    return (home / FOLDER).is_dir()


def pin_from(connection: Connection, home: Path, *, root: str, now: datetime) -> TrustedRoster:
    """Fetch the roster for the first time, and trust it when its root has the digest that a steward told.

    Raises:
        RosterNotPinned: it has another one. BankUnreachable: it cannot be fetched. As `pin_roster`.
    Proved by: tests/unit/test_site_roster_watch.py::test_a_roster_is_pinned_only_when_its_root_is_the_one_that_was_told
    """
    with _fetched(connection, home) as source:
        pin_roster(source, root_sha256=root, out=home / FOLDER, now=now)
    return load_roster(home / FOLDER, now=now)


def update_from(connection: Connection, home: Path, *, now: datetime) -> TrustedRoster:
    """Fetch the roster and take over what is newer in it.

    Raises:
        BankUnreachable: it cannot be fetched. As `update_roster`; what was trusted before stays.
    """
    with _fetched(connection, home) as source:
        return update_roster(home / FOLDER, source=source, now=now)


def require_root(home: Path, wanted: str | None) -> None:
    """Refuse to go on under another root than the one that was named now; raises OtherRoot, RosterNotPinned."""
    if not is_pinned(home):
        raise RosterNotPinned(
            where="roster", expected="one that was pinned", got="none",
            hint="add --root-sha256, with the digest that a steward tells you over another channel than the network",
        )  # fmt: skip
    pinned = root_sha256(home / FOLDER)
    if wanted is not None and wanted.lower() != pinned:
        raise OtherRoot(
            where="--root-sha256", expected=pinned, got=wanted.lower(),
            hint="this site has pinned the first one; ask the stewards which is theirs",
        )  # fmt: skip


@contextmanager
def _fetched(connection: Connection, home: Path) -> Iterator[Path]:
    """The coordinator's copy, in a folder that goes again."""
    client = BankClient(
        connection, name="", coordinator=connection.coordinator, federation=connection.federation,
        signer=Home(home).signer, patience_s=PATIENCE_S,
    )  # fmt: skip
    with closing(client), tempfile.TemporaryDirectory(dir=home, prefix=".roster-") as folder:
        client.fetch_roster(Path(folder))
        yield Path(folder)
