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
STRANGERS_NAMED = 50  # in a minute: whoever makes up keys must not push what matters out of the list


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
    """Tells the log and the coordinator's state what was refused to whom, each thing once a minute.

    Of those whom nobody knows the first fifty in a minute are named, the others together.
    """

    def __init__(self, home: Path) -> None:
        self._state, self._lock = CoordinatorState(home), threading.Lock()
        self._told: dict[tuple[str, str, str | None], float] = {}

    def note(self, code: str, text: str, *, site: str | None = None) -> None:
        """Name what was tried and by whom.

        Proved by: tests/attacks/test_gateway.py::test_made_up_keys_do_not_hide_who_else_was_refused
        """
        with self._lock:
            now = time.monotonic()
            while self._told and now - next(iter(self._told.values())) >= TELL_AGAIN_S:
                del self._told[next(iter(self._told))]
            if site is None and sum(known[2] is None for known in self._told) >= STRANGERS_NAMED:
                text = "more such requests were refused than are named one by one"
            if (code, text, site) in self._told:
                return
            self._told[code, text, site] = now
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
        key_id, why = node_key_id_of_header(header), None
        try:
            site = None if key_id is None else self._nodes.site_of(key_id)
            if site is not None:
                why = self._nodes.why_not(site, self._roster.get(), datetime.now(UTC))
        except NotFedError as error:  # no roster that may be relied on, or an altered enrolment: nobody is admitted
            self._problems.note(error.code, f"nobody is admitted: {error}"[:500])
            raise Refused(503, error.code, headers={"Retry-After": "30"}) from None
        if site is None:
            who = "without a key" if key_id is None else f"with the unknown key {key_id[:16]}"
            self._problems.note("site-unknown", f"a connection from {peer} {who} was refused")
            raise Refused(403, "site-unknown")
        if why is not None:
            self._problems.note("site-not-admitted", f"a connection from {peer} was refused: {why}", site=site)
            raise Refused(403, "site-not-admitted")
        return site
