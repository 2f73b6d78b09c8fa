"""The newest roster, fetched from the coordinator and held against what this site trusts already.

The coordinator is only where it lies: what is not signed by enough of the stewards, is older, or leaves a recall out is
refused as it would be from any other source, and what was trusted before stays.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from not_fed.errors import TrustError
from not_fed.home import Home
from not_fed.site.connection import Connection
from not_fed.trust.roster import RosterNotPinned, TrustedRoster, load_roster, pin_roster, root_sha256, update_roster

FOLDER = "roster"


class OtherRoot(TrustError):
    """This site trusts another roster than the one that was named."""

    code = "other-root"


def is_pinned(home: Path) -> bool:
    """Whether this site trusts a roster already."""
    return (home / FOLDER).is_dir()


def pin_from(client: Any, home: Path, *, root: str, now: datetime) -> TrustedRoster:  # noqa: ANN401  a BankClient
    """Fetch the roster for the first time, and trust it when its root has the digest that a steward told.

    Raises:
        RosterNotPinned: it has another one. PeerError: it cannot be fetched. As `pin_roster`.
    """
    with tempfile.TemporaryDirectory(dir=home, prefix=".roster-") as folder:
        client.fetch_roster(Path(folder))
        pin_roster(Path(folder), root_sha256=root, out=home / FOLDER, now=now)
    return load_roster(home / FOLDER, now=now)


def update_from(client: Any, home: Path, *, now: datetime) -> TrustedRoster:  # noqa: ANN401  a BankClient
    """Fetch the roster and take over what is newer in it.

    Raises:
        PeerError: it cannot be fetched. As `update_roster`; what was trusted before stays.
    """
    with tempfile.TemporaryDirectory(dir=home, prefix=".roster-") as folder:
        client.fetch_roster(Path(folder))
        return update_roster(home / FOLDER, source=Path(folder), now=now)


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


def connect(home: Path, connection: Connection, *, name: str) -> Any:  # noqa: ANN401
    """A client for the coordinator's gateway."""
    return import_module("not_fed.site.bank_client").BankClient(
        connection, name=name, coordinator=connection.coordinator, federation=connection.federation,
        signer=Home(home).signer(),
    )  # fmt: skip
