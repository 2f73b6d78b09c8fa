"""Who may connect: an enrolled site that the stewards' roster has as an active author, by the key of its connection.

Whoever may not is named in the log and in the coordinator's problems: the site, or the key, and the address.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from not_fed.coordinator.gateway.answers import Refused
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.state import CoordinatorState
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.keys.node_key import node_key_id_of_header
from not_fed.trust.roster import TrustedRoster

log = logging.getLogger("not_fed.coordinator")

NODE_KEY_HEADER = "flwr-public-key"
LOOK_AGAIN_S = 2.0
TELL_AGAIN_S = 60.0
MAX_REMEMBERED = 10_000


class CurrentRoster:
    """The roster in the coordinator's home, verified again when its files have changed, or every two seconds."""

    def __init__(self, home: Path) -> None:
        self._home, self._lock = Home(home), threading.Lock()
        self._known: TrustedRoster | None = None
        self._looked_at = 0.0

    def get(self) -> TrustedRoster:
        """The roster as of now; raises what `load_roster` raises."""
        with self._lock:
            now = time.monotonic()
            if self._known is None or now - self._looked_at >= LOOK_AGAIN_S:
                self._known, self._looked_at = self._home.roster(datetime.now(UTC)), now
            return self._known


class Problems:
    """Tells the log and the coordinator's state what was refused to whom, each thing once a minute."""

    def __init__(self, home: Path) -> None:
        self._state, self._lock = CoordinatorState(home), threading.Lock()
        self._told: dict[tuple[str, str], float] = {}

    def note(self, code: str, text: str, *, site: str | None = None) -> None:
        """Name what was tried and by whom."""
        with self._lock:
            now = time.monotonic()
            if now - self._told.get((code, text), -TELL_AGAIN_S) < TELL_AGAIN_S or len(self._told) >= MAX_REMEMBERED:
                return
            self._told[code, text] = now
            self._told = {key: at for key, at in self._told.items() if now - at < TELL_AGAIN_S}
        log.warning("gateway: %s%s: %s", f"{site}: " if site else "", text, code)
        self._state.problem(code, text, site=site)


class Admission:
    """Decides about connections of Flower's nodes."""

    def __init__(self, nodes: Nodes, *, roster: CurrentRoster, problems: Problems) -> None:
        self._nodes, self._roster, self._problems = nodes, roster, problems

    def site(self, header: str | None, *, peer: str) -> str:
        """The site whose connection this is.

        Args:
            header: Flower's header with the public key. That its sender holds the key, Flower checks.
            peer: the address, for the log.
        Raises:
            Refused: not enrolled here, or not an active author of the roster.
        Proved by: tests/attacks/test_gateway.py::test_an_unknown_and_a_revoked_site_get_nowhere_and_are_named
        """
        key_id = node_key_id_of_header(header)
        site = None if key_id is None else self._nodes.site_of(key_id)
        if site is None:
            who = "without a key" if key_id is None else f"with the unknown key {key_id[:16]}"
            self._problems.note("site-unknown", f"a connection from {peer} {who} was refused")
            raise Refused(403, "site-unknown")
        try:
            why = self._nodes.why_not(site, self._roster.get(), datetime.now(UTC))
        except NotFedError as error:  # no roster that may be relied on: nobody is admitted
            self._problems.note(error.code, f"nobody is admitted: {error}"[:500])
            raise Refused(503, error.code, headers={"Retry-After": "30"}) from None
        if why is not None:
            self._problems.note("site-not-admitted", f"a connection from {peer} was refused: {why}", site=site)
            raise Refused(403, "site-not-admitted")
        return site
