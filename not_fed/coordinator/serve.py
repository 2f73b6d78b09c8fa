"""`not-fed coordinator serve`: one process for a coordinator's SuperLink, its superexec, the gateway, and the run.

    main thread     supervises the two Flower processes, looks after the certificate, listens to signals
    gateway         uvicorn, on the only port that is open to others
    keeper          registers sites, starts the server app when none works

Everything of Flower binds to 127.0.0.1. Whatever is killed is started again and goes on with the round that was open:
state lies in HOME/state.db, HOME/bank and HOME/flower/state.db, never in one of these processes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from not_fed import files
from not_fed.canonical import format_time
from not_fed.coordinator.certificates import GatewayCertificate
from not_fed.coordinator.collecting import collect_garbage
from not_fed.coordinator.creating import require_deployment
from not_fed.coordinator.deployment import Deployment
from not_fed.coordinator.flower_commands import SUPERLINK, FlowerCommands
from not_fed.coordinator.gateway import build_gateway
from not_fed.coordinator.keeper import Keeper
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.plan import FederationPlan, load_plan
from not_fed.coordinator.serving import FACTS_FILE, FLOWER, SCHEMA, serving_alone
from not_fed.coordinator.state import CoordinatorState, is_run_locked
from not_fed.envelope.invitation import split_address
from not_fed.errors import InputError, NotFedError, PeerError
from not_fed.home import Home
from not_fed.processes.alone import asked_to_end
from not_fed.processes.supervisor import Supervisor
from not_fed.trust.roster import TrustedRoster

POLL_S, KEEP_S, CERTIFICATE_S, SEEN_S, COLLECT_S = 0.2, 0.5, 600.0, 5.0, 3600.0
GATEWAY_START_S, LAST_WORDS_S = 20.0, 15.0
KEEP_ALIVE_S = 75  # a SuperNode polls every 3 s: its connection stays


class AddressTaken(InputError):
    """The gateway cannot listen there."""

    code = "address-taken"


class PartDown(PeerError):
    """A part of serve has ended by itself."""

    code = "serve-part-down"


def serve(home: Path, *, until_complete: bool = False, say: Callable[[str], None]) -> None:
    """Serve until a signal comes, or, when asked for, until the plan's run is complete.

    Args:
        say: takes one line for the administrator at a time; problems are also kept in the coordinator's state.
    Raises:
        AlreadyServed, AddressTaken, BadSettings, NotAFile; CertificateExpired: the given one.
        RosterNotPinned, RosterExpired, UnknownMember, WrongRole: the roster does not know this coordinator as a relay.
        RunStopped: with `until_complete`, when the run has stopped for lack of sites.
    Guarantees:
        Nothing but the gateway listens on an address that other machines reach. A kill of any process at any moment,
        of this one too, loses no round: the next start goes on with the one that was open.
    Proved by: tests/unit/test_coordinator_serve.py::test_a_second_serve_of_the_same_home_is_refused
    """
    now = datetime.now(UTC)
    deployment, plan = require_deployment(home), load_plan(home)
    roster = Home(home).roster(now)
    roster.member(plan.name, role="relay", now=now)
    with serving_alone(home), ExitStack() as stack:
        certificate = GatewayCertificate(home, deployment, now=now)
        listener = stack.enter_context(closing(_listen(deployment)))
        os.umask(0o077)
        Served(home, deployment, certificate=certificate, listener=listener, say=say, stack=stack).run(
            plan, roster, until_complete=until_complete
        )


class Served:
    """One coordinator at work."""

    def __init__(
        self, home: Path, deployment: Deployment, *, certificate: GatewayCertificate, listener: socket.socket,
        say: Callable[[str], None], stack: ExitStack,
    ) -> None:  # fmt: skip
        self._home, self._deployment, self._certificate, self._say = home, deployment, certificate, say
        self._listener, self._stack = listener, stack
        self.state, self.nodes = CoordinatorState(home), Nodes(home)
        Home(home).private_folder(FLOWER)
        self._commands = FlowerCommands(home)
        self.keeper = Keeper(home, flower=self._commands, nodes=self.nodes, say=say)
        self._supervisor = Supervisor(self._commands.children(), say=say, on_exit=self._has_died)
        self._wish, self._ending = threading.Event(), threading.Event()  # asked to end; at it
        self._facts: dict[str, object] = {}
        self._certificate_at, self._fingerprint = 0.0, certificate.facts.fingerprint

    def run(self, plan: FederationPlan, roster: TrustedRoster, *, until_complete: bool) -> None:
        """All of `serve` once the home is this process's alone."""
        self._introduce(plan, roster)
        with asked_to_end(self._wish), _logged(self._say):
            self._stack.callback(self._end)
            self._start()
            gateway = self._open_gateway()
            keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
            keeper.start()
            while not self._wish.is_set() and not (until_complete and self._is_over()):
                self._supervisor.poll()
                self._look_after_certificate()
                self._write_facts()
                if not gateway.is_alive() or not keeper.is_alive():
                    raise _down("gateway" if keeper.is_alive() else "keeper")
                time.sleep(POLL_S)
            if self.keeper.stopped is not None and until_complete and not self._wish.is_set():
                raise self.keeper.stopped
        self._say("stopped in order" if self._wish.is_set() else f"run {plan.run} is complete")

    def _is_over(self) -> bool:
        return (self.keeper.complete and not is_run_locked(self._home)) or self.keeper.stopped is not None

    def _start(self) -> None:
        for name in self._commands.names:
            self._supervisor.start(name)
        self._supervisor.poll()

    def _keep(self) -> None:
        collect_at = time.monotonic()
        while not self._ending.wait(KEEP_S):
            self.keeper.step()
            if time.monotonic() >= collect_at:
                collect_at = time.monotonic() + COLLECT_S
                self._collect()

    def _collect(self) -> None:
        """Let the bank forget what its time is over for."""
        try:
            gone = collect_garbage(self._home, now=datetime.now(UTC))
        except NotFedError as error:
            self.keeper.trouble(error.code, f"{error}; {error.hint}")
            return
        if gone:
            self._say(f"the bank let go of {len(gone)} sealed organs that no open run needs")

    def _has_died(self, name: str, code: int) -> None:
        """A supervised process ended by itself; the supervisor starts it again."""
        with suppress(NotFedError):  # the supervisor has told it; a disk that takes no note ends nobody's service
            self.state.problem(f"{name}-died", f"{name} ended with code {code}; it was started again")
        if name == SUPERLINK:
            self.keeper.forget_registrations()

    def _open_gateway(self) -> threading.Thread:
        seen = _Seen(self.state)
        app = build_gateway(
            self._home, superlink_url=self._commands.url, superlink_ca=self._commands.ca, nodes=self.nodes, seen=seen
        )
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, ws="none", timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2, proxy_headers=False, lifespan="on",
            ssl_context_factory=lambda _config, _default: self._certificate.context,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [self._listener]}, name="gateway", daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(LAST_WORDS_S)

        self._stack.callback(end)
        deadline = time.monotonic() + GATEWAY_START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise _down("gateway")
            time.sleep(POLL_S / 4)
        return thread

    def _look_after_certificate(self) -> None:
        if time.monotonic() < self._certificate_at:
            return
        self._certificate_at = time.monotonic() + CERTIFICATE_S
        try:
            if self._certificate.refresh(datetime.now(UTC)):
                self._fingerprint = self._certificate.facts.fingerprint
                self._say(f"the certificate was replaced: {_certificate_line(self._certificate)}")
        except NotFedError as error:
            self.keeper.trouble(error.code, f"{error}; {error.hint}")
        except OSError as error:
            self.keeper.trouble("certificate-unread", f"the certificate cannot be read: {error.strerror}")

    def _end(self) -> None:
        """Let the server app end in order, then superexec, then the SuperLink."""
        self._ending.set()
        self._supervisor.stop_all()
        deadline = time.monotonic() + LAST_WORDS_S
        while is_run_locked(self._home) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        with suppress(FileNotFoundError):
            (self._home / FLOWER / FACTS_FILE).unlink()

    def _introduce(self, plan: FederationPlan, roster: TrustedRoster) -> None:
        """What an administrator wants to see first."""
        host, port = self._listener.getsockname()[:2]
        self._say(
            f"{plan.name} coordinates {plan.federation} at {self._deployment.address}, listening on {host}:{port}"
        )
        self._say(_certificate_line(self._certificate))
        self._say(f"bundle {self._commands.bundle_sha256}, which sites pin")
        missing = self.keeper.missing(plan, roster)
        there = [site for site in plan.sites if site not in missing]
        self._say(
            f"roster version {roster.version}, until {format_time(roster.expires_at)}: {', '.join(there) or 'nobody'}"
        )
        for site, why in missing.items():
            self._say(f"  {site}: {why}")
        for site in sorted(set(self.nodes.enrolled()) - set(plan.sites)):
            self._say(f"  {site}: enrolled, not in this run")
        self._say(f"run {plan.run}: mode {plan.mode}, {plan.rounds} rounds, {self.state.outcome(plan.run) or 'new'}")

    def _write_facts(self) -> None:
        """HOME/flower/serve.json, for `status` and for whoever watches."""
        facts: dict[str, object] = {
            "schema": SCHEMA, "pid": os.getpid(), "address": self._deployment.address,
            "listen": list(self._listener.getsockname()[:2]), "superlink": self._commands.port,
            "pids": self._supervisor.pids(), "flower_run": self.keeper.flower_run,
            "certificate": self._fingerprint,
        }  # fmt: skip
        if facts != self._facts:
            with suppress(NotFedError, OSError):  # a full disk: the next change is written again
                self._facts = facts
                files.write_atomic(
                    self._home / FLOWER / FACTS_FILE, json.dumps(facts).encode() + b"\n", overwrite=True
                )  # fmt: skip


class _Seen:
    """Notes that a site was heard of, not more often than a person would look."""

    def __init__(self, state: CoordinatorState) -> None:
        self._state, self._last = state, dict[str, float]()

    def __call__(self, site: str) -> None:
        if time.monotonic() - self._last.get(site, -SEEN_S) >= SEEN_S:
            self._last[site] = time.monotonic()
            with suppress(NotFedError):  # a full disk or a locked database: the site is served all the same
                self._state.saw_site(site, at=datetime.now(UTC))


def _listen(deployment: Deployment) -> socket.socket:
    host, port = split_address(deployment.listen)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only where `proto` is given
        return listener
    except OSError as error:
        raise AddressTaken(
            where=f"coordinator.toml, field listen, {deployment.listen}", expected="a free address of this machine",
            got=os.strerror(error.errno or 0).lower(), hint="end whoever listens there, or choose another port",
        ) from None  # fmt: skip


class _Said(logging.Handler):
    """What the gateway logs, such as who was refused, told to the administrator."""

    def __init__(self, say: Callable[[str], None], *, level: int) -> None:
        super().__init__(level)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Part of Handler."""
        if str(record.msg).startswith("Cancel "):  # uvicorn at its end: a SuperNode's open connection is no news
            return
        kind = record.exc_info[0] if record.exc_info else None
        self._say(record.getMessage() + (f" ({kind.__name__})" if kind else ""))


@contextmanager
def _logged(say: Callable[[str], None]) -> Iterator[None]:
    """For the block, `say` hears what this coordinator's modules log, and what ails the server under the gateway."""
    heard = {"not_fed.coordinator": logging.INFO, "uvicorn.error": logging.ERROR}
    handlers = {logging.getLogger(name): _Said(say, level=level) for name, level in heard.items()}
    for logger, handler in handlers.items():
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in handlers.items():
            logger.removeHandler(handler)


def _certificate_line(certificate: GatewayCertificate) -> str:
    facts = certificate.facts
    return f"certificate for {', '.join(facts.hosts)} until {format_time(facts.not_after)}, {facts.fingerprint}"


def _down(what: str) -> PartDown:
    return PartDown(
        where=what, expected="it to go on", got="its end", hint="the lines above say why; start serve again"
    )
