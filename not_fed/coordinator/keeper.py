"""Keeps the plan's run going: registers the sites' connections with Flower, and starts its server app when none works.

All that a run has reached lies in the coordinator's state, none of it in Flower: a server app that died is replaced by
a new Flower run, which goes on with the round that was open. Whether one works is asked of the lock that it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.plan import FederationPlan, load_plan
from not_fed.coordinator.state import CoordinatorState, is_run_locked
from not_fed.errors import NotFedError, PeerError
from not_fed.home import Home
from not_fed.trust.roster import TrustedRoster

START_PATIENCE_S = 90.0  # a server app that does not hold the lock by then will not come
HEALTHY_AFTER_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
STOPPED_PAUSE_S, LONGEST_STOPPED_PAUSE_S = 30.0, 600.0
LOOK_S = 3.0  # how often a run that works is looked after
FIRST_REGISTERED, MORE_REGISTERED = 8, 4  # each costs a `flwr` command: the run does not wait for the hundredth site
ASK_FLOWER_S = 10.0  # a `flwr` command costs a second of CPU time


class RunStopped(PeerError):
    """The run has stopped before its end: too few sites answered, again and again."""

    code = "run-stopped"


class Flower(Protocol):
    """What a keeper asks of Flower; every method raises NotFedError when the SuperLink does not answer."""

    def registered(self) -> set[str]:
        """The ids of the connection keys that Flower lets in."""

    def register(self, site: str, node_key: str) -> None:
        """Let a connection with this key in."""

    def submit(self) -> int:
        """Start the server app; the number of Flower's run."""

    def unfinished(self) -> list[int]:
        """Flower's runs that are not over."""

    def stop(self, run: int) -> None:
        """End one of them."""

    def end_of(self, run: int) -> str | None:
        """How one of them ended; None while it goes on."""


@dataclass
class Pause:
    """How long to wait before the next start: longer each time, until one has worked for a while."""

    first_s: float
    longest_s: float
    next_s: float = 0.0

    def after(self, lived_s: float) -> float:
        """The pause after a server app that has lived for so long."""
        self.next_s = self.first_s if lived_s >= HEALTHY_AFTER_S or not self.next_s else 2 * self.next_s
        self.next_s = min(self.next_s, self.longest_s)
        return self.next_s


class Keeper:
    """One coordinator's run, kept going; `step` is called again and again by one thread."""

    def __init__(
        self, home: Path, *, flower: Flower, nodes: Nodes, say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._home, self._flower, self._nodes, self._say, self._clock = Home(home), flower, nodes, say, clock
        self.state = CoordinatorState(home)
        self.flower_run: int | None = None
        self.complete = False
        self.stopped: RunStopped | None = None
        self._registered: set[str] | None = None
        self._submitted_at = self._working_since = self._ask_after = 0.0
        self._working = False
        self._not_before = 0.0
        self._pauses = {"died": Pause(FIRST_PAUSE_S, LONGEST_PAUSE_S)}
        self._pauses["stopped"] = Pause(STOPPED_PAUSE_S, LONGEST_STOPPED_PAUSE_S)
        self._told: dict[str, str] = {}

    def step(self) -> None:
        """Do what is due now. Never raises for what may pass: it is told, noted, and tried again."""
        try:
            self._step()
        except NotFedError as error:
            self.trouble(error.code, f"{error.title().removesuffix('.')}: {error}; {error.hint}")
            self._not_before = self._clock() + FIRST_PAUSE_S
        except OSError as error:  # no room, no descriptor, no process: tomorrow there may be one
            self.trouble("machine-refused", f"this machine refused: {error.strerror}")
            self._not_before = self._clock() + FIRST_PAUSE_S

    def trouble(self, code: str, text: str, *, site: str | None = None) -> None:
        """Tell a problem once, and note it each time; a disk that takes no note keeps nobody from hearing of it."""
        with suppress(NotFedError):
            self.state.problem(code, text, site=site)
        self._tell(f"problem {code} {site}", f"{f'{site}: ' if site else ''}{text}")

    def _step(self) -> None:
        plan = load_plan(self._home.folder)
        self.complete = self.state.outcome(plan.run) == "complete"
        if is_run_locked(self._home.folder):
            self._is_working(plan)
            return
        if self._working:
            self._has_ended(plan)
        if self.complete:
            self._tell("run", f"run {plan.run} is complete; for another one, change {plan.run} in federation.toml")
            return
        roster = self._home.roster(_now())
        self._register(roster, most=FIRST_REGISTERED)
        if self._clock() >= self._not_before and not self._is_starting(plan):
            self._start(plan, roster)

    def _is_working(self, plan: FederationPlan) -> None:
        if not self._working:
            self._working, self._working_since = True, self._clock()
            self.stopped = None
            self._tell("run", f"run {plan.run}: the server app works")
        if self._clock() >= self._ask_after:  # a site that enrols during a run, or waits its turn
            self._ask_after = self._clock() + LOOK_S
            self._register(self._home.roster(_now()), most=MORE_REGISTERED)

    def _has_ended(self, plan: FederationPlan) -> None:
        """The lock is free: the run is over, has stopped for lack of sites, or its server app died."""
        lived_s, self._working = self._clock() - self._working_since, False
        self.flower_run = None
        outcome = self.state.outcome(plan.run)
        if outcome == "complete":
            return
        if outcome == "stopped":
            pause_s = self._pauses["stopped"].after(lived_s)
            self.stopped = _stopped(plan, self._missing(plan))
            self.trouble(self.stopped.code, f"{self.stopped}; nothing is lost; tried again in {pause_s:.0f} s")
        else:
            pause_s = self._pauses["died"].after(lived_s)
            self.trouble("server-app-died", f"run {plan.run}: the server app died; another goes on in {pause_s:.0f} s")
        self._not_before = self._clock() + pause_s

    def _is_starting(self, plan: FederationPlan) -> bool:
        """Whether a server app that was submitted may still come."""
        if self.flower_run is None:
            return False
        if self._clock() < self._ask_after:
            return True
        self._ask_after = self._clock() + ASK_FLOWER_S
        end = self._flower.end_of(self.flower_run)
        if end is None and self._clock() - self._submitted_at < START_PATIENCE_S:
            return True
        self.flower_run = None
        if self.state.outcome(plan.run) == "stopped" and end is not None:  # it was too quick to be seen at work
            self._working_since = self._submitted_at
            self._has_ended(plan)
            return True
        pause_s = self._pauses["died"].after(0.0)
        self._not_before = self._clock() + pause_s
        self.trouble(
            "server-app-failed",
            f"run {plan.run}: the server app did not start: {end or 'nothing was heard'}; again in {pause_s:.0f} s",
        )
        return True

    def _start(self, plan: FederationPlan, roster: TrustedRoster) -> None:
        missing = self.missing(plan, roster)
        if len(plan.sites) - len(missing) < plan.min_answers:
            lacking = "; ".join(f"{site}: {why}" for site, why in missing.items())
            self._tell("run", f"run {plan.run} waits for the roster and enrolments: {lacking}")
            self._not_before = self._clock() + FIRST_PAUSE_S
            return
        for unfinished in self._flower.unfinished():  # of a server app that is no more: it holds no lock
            self._flower.stop(unfinished)
        self.flower_run = self._flower.submit()
        self._submitted_at, self._ask_after = self._clock(), self._clock() + ASK_FLOWER_S
        self._tell("run", f"run {plan.run}: server app started, as Flower's run {self.flower_run}")

    def missing(self, plan: FederationPlan, roster: TrustedRoster) -> dict[str, str]:
        """Sites of the plan that the gateway would not let in, and why."""
        reasons = {site: self._nodes.why_not(site, roster, _now()) for site in plan.sites}
        return {site: why for site, why in reasons.items() if why is not None}

    def _register(self, roster: TrustedRoster, *, most: int) -> None:
        """Make admitted sites' keys known to Flower, some at a time; again after Flower lost its database."""
        wanted = {
            one.key_id: (site, one.enrolment.node_key)
            for site, one in self._nodes.enrolled().items()
            if self._nodes.admitted(site, roster, _now())
        }
        if self._registered is None or not set(wanted) <= self._registered:
            self._registered = self._flower.registered()
        unknown = [key_id for key_id in wanted if key_id not in self._registered]
        for key_id in unknown[:most]:
            site, node_key = wanted[key_id]
            self._flower.register(site, node_key)
            self._registered.add(key_id)
            self._tell(f"node {site}", f"{site} may connect")

    def forget_registrations(self) -> None:
        """Ask Flower again: its SuperLink was started anew."""
        self._registered = None

    def _missing(self, plan: FederationPlan) -> list[str]:
        attempts = self.state.attempts(plan.run)
        return [f"{site} ({why})" for site, why in attempts[-1].missing.items()] if attempts else []

    def _tell(self, about: str, text: str) -> None:
        """Say it unless it is what was said about this before."""
        if self._told.get(about) != text:
            self._told[about] = text
            self._say(text)


def _stopped(plan: FederationPlan, missing: Iterable[str]) -> RunStopped:
    return RunStopped(
        where=f"run {plan.run}", expected=f"at least {plan.min_answers} organs in a round",
        got=f"fewer; missing: {', '.join(missing) or 'nobody in particular'}",
        hint="nothing is lost: ask these sites, and start again",
    )  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)
