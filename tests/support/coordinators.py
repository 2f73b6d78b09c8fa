"""A coordinator's home as its commands make it, with sites enrolled and a roster pinned; real, and not serving."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from not_fed.coordinator.creating import Created, Wishes, add_site, create_coordinator
from not_fed.coordinator.nodes import Nodes
from not_fed.keys import Steward
from not_fed.trust.roster import create_roster, pin_roster, update_roster
from tests.support.enrolments import Joining
from tests.support.trust import FEDERATION

BASE = "ab" * 32


def wishes(**changes: object) -> Wishes:
    """What most tests wish for: a hub on this machine."""
    fields = {
        "name": "hub", "federation": FEDERATION, "address": "localhost:8443", "listen": "127.0.0.1:0",
        "base": "smollm2-135m", "base_sha256": BASE, "span": (1, 3),
    } | changes  # fmt: skip
    return Wishes(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hub:
    """One coordinator, its sites, and the steward who keeps their roster."""

    home: Path
    created: Created
    sites: dict[str, Joining]
    steward: Steward
    stewards_roster: Path

    @classmethod
    def make(
        cls, folder: Path, *, sites: Sequence[str] = ("clinic", "ward"), on_roster: Sequence[str] | None = None
    ) -> Hub:
        """Make it in `folder`; `on_roster`: which of the sites the steward has, all of them by default."""
        now = datetime.now(UTC)
        home, roster, steward = folder / "hub", folder / "roster", Steward.generate("steward")
        created = create_coordinator(home, wishes(), now=now)
        joining = {name: Joining.make(name, folder=folder / name) for name in sites}
        for name, one in joining.items():
            Nodes(home).enrol(one.enrolment(now=now), federation=FEDERATION, coordinator="hub", now=now)
            assert add_site(home, name)
        members = [(created.identity, ["relay", "aggregator"])]
        members += [
            (joining[name].site.public, ["author", "receiver"]) for name in (sites if on_roster is None else on_roster)
        ]
        root = create_roster(roster, federation=FEDERATION, steward=steward, members=members)
        pin_roster(roster, root_sha256=root, out=home / "roster")
        return cls(home, created, joining, steward, roster)

    def take_over_roster(self) -> None:
        """The coordinator takes over what the steward has published since."""
        update_roster(self.home / "roster", source=self.stewards_roster, now=datetime.now(UTC))

    def copy(self, folder: Path) -> Hub:
        """The same one, elsewhere."""
        shutil.copytree(self.home, folder / "hub")
        return Hub(folder / "hub", self.created, self.sites, self.steward, self.stewards_roster)
