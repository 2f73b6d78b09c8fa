"""`not-fed site join`: one process that keeps a site connected, and takes over the newest roster.

    main thread   supervises Flower's SuperNode and superexec, listens to signals, tells what happens
    watch         asks the coordinator for its health and the roster, now and then

All connections go out; the SuperNode's own interface is on 127.0.0.1, with TLS and a shared secret. What was done and
what was spent lies in the home, never in one of these processes: whatever is killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from not_fed import files
from not_fed.canonical import format_time
from not_fed.errors import InputError, NotFedError, PeerError, TrustError
from not_fed.home import Home
from not_fed.keys import SigningKeys
from not_fed.processes import flower
from not_fed.processes.alone import asked_to_end, facts_of, held
from not_fed.processes.ports import free_port, listens
from not_fed.processes.shims import write_shims
from not_fed.processes.supervisor import BackOff, Child, Supervisor
from not_fed.processes.tls import loopback_tls
from not_fed.site import roster_watch
from not_fed.site.clientapp import SITE, require_flower
from not_fed.site.connection import Connection, require_connection
from not_fed.site.creating import NODE_KEY
from not_fed.site.log_file import note
from not_fed.site.news import News
from not_fed.site.policy import SitePolicy, load_policy
from not_fed.site.preflight import CoordinatorUnreachable, ask_health, check_health
from not_fed.trust.roster import TrustedRoster, load_roster

FLOWER, LOCK_FILE, FACTS_FILE = "flower", "join.lock", "joining.json"
SCHEMA = "not-fed/joining/1"
REHEARSE = "NOT_FED_REHEARSE"
SUPERNODE, SUPEREXEC = "supernode", "superexec"
CLIENT_APP = {"flwr-clientapp": "not_fed.site.clientapp"}
POLL_S, WATCH_S, FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 60.0, 2.0, 30.0
BACK_OFF = BackOff(first_s=2.0, longest_s=15.0)  # after a kill the SuperLink keeps the old connection for a minute


class KeysNotEnrolled(TrustError):
    """The roster has this site's name with other keys."""

    code = "keys-not-enrolled"


class AlreadyJoined(InputError):
    """Another process keeps this site connected."""

    code = "already-joined"


def join(
    home: Path, *, root_sha256: str | None = None, rehearse: bool = False, say: Callable[[str], None]
) -> None:  # fmt: skip
    """Keep the site at `home` connected until a signal comes.

    Args:
        root_sha256: digest of the roster's first root, needed while none is pinned.
        rehearse: everything but training and sending.
        say: takes one line for the administrator at a time.
    Raises:
        AlreadyJoined, NoConnection, BadSettings, and what keys raise: this home is not ready.
        CertificateForeign, CertificateOtherHost, CertificateExpired, ClockApart, OtherProtocol, ForeignCoordinator: the
        coordinator, or this machine's clock, is not. As `pin_roster`, `update_roster`; UnknownMember, MemberNotActive,
        KeysNotEnrolled.
    Guarantees:
        Nothing listens for other machines. A coordinator that does not answer is waited for.
    Proved by: tests/unit/test_site_join.py::test_a_second_join_of_the_same_home_is_refused
    """
    home = home.resolve()
    connection, policy = require_connection(home), load_policy(home)
    with held(home / LOCK_FILE, busy=lambda: _joined(home)), ExitStack() as stack:
        os.umask(0o077)
        Joined(home, connection, policy, rehearse=rehearse, say=say, stack=stack).run(root_sha256)


class Joined:
    """One site that takes part."""

    def __init__(
        self, home: Path, connection: Connection, policy: SitePolicy, *, rehearse: bool, say: Callable[[str], None],
        stack: ExitStack,
    ) -> None:  # fmt: skip
        self._home, self._connection, self._policy, self._rehearse = home, connection, policy, rehearse
        self._say, self._stack = say, stack
        self._end = threading.Event()
        self._told: dict[str, str] = {}
        self._facts: dict[str, object] = {}
        self._keys: SigningKeys | None = None
        self._follows_log = False  # then what is noted is said from there

    def run(self, root_sha256: str | None) -> None:
        """All of `join` once the home is this process's alone."""
        require_flower()
        self._keys = Home(self._home).signer().public
        Home(self._home).opener()
        with asked_to_end(self._end):
            roster = self._until_reached(root_sha256)
            if roster is None:
                return
            self._introduce(roster)
            self._stay()
        self._say("stopped in order")

    def _until_reached(self, root_sha256: str | None) -> TrustedRoster | None:
        """Look at everything; a coordinator that does not answer is asked again. None: a signal came first."""
        pause_s = FIRST_RETRY_S
        while True:
            try:
                return self._preflight(root_sha256)
            except PeerError as error:
                if not _may_pass(error):
                    raise
                self._tell("coordinator", f"{error}; {error.hint}")
            if self._end.wait(pause_s):
                return None
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)

    def _preflight(self, root_sha256: str | None) -> TrustedRoster:
        check_health(ask_health(self._connection), self._connection)
        if self._connection.gateway:
            if root_sha256 is not None and not roster_watch.is_pinned(self._home):
                roster_watch.pin_from(self._connection, self._home, root=root_sha256, now=_now())
            roster_watch.require_root(self._home, root_sha256)
            roster = roster_watch.update_from(self._connection, self._home, now=_now())
        else:
            roster_watch.require_root(self._home, root_sha256)
            roster = load_roster(self._home / roster_watch.FOLDER, now=_now())
        member = roster.member(self._policy.name, role="author", now=_now())
        if self._keys is not None and member.signing != self._keys:
            raise KeysNotEnrolled(
                where=f"roster version {roster.version}, {member.name}", expected="the keys of this home",
                got=f"others, of the identity {member.fingerprint}",
                hint="give the stewards this home's keys/identity.json, or join with the home that they enrolled",
            )  # fmt: skip
        roster.member(self._policy.coordinator, role="relay", now=_now())
        return roster

    def _introduce(self, roster: TrustedRoster) -> None:
        connection, policy = self._connection, self._policy
        self._say(
            f"{policy.name} takes part in {connection.federation}, by {connection.coordinator} at {connection.address}"
        )
        self._say(f"roster version {roster.version}, until {format_time(roster.expires_at)}")
        if not policy.bundle_sha256:
            self._say("site.toml approves no bundle: every order will be refused as bundle-unpinned")
        if self._rehearse:
            self._say("rehearsal: nothing is trained, and nothing is sent")

    def _stay(self) -> None:
        folder = Home(self._home).private_folder(FLOWER)
        port = free_port()
        supervisor = Supervisor(
            children(self._home, self._connection, port=port, rehearse=self._rehearse), say=self._say, back_off=BACK_OFF
        )
        news = News(supernode=folder / f"{SUPERNODE}.log", site=self._home / "log", say=self._say)
        self._follows_log = True
        self._stack.callback(_forget_facts, folder)
        self._stack.callback(supervisor.stop_all)
        self._stack.callback(self._end.set)
        for name in (SUPERNODE, SUPEREXEC):
            supervisor.start(name)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        while not self._end.wait(POLL_S):
            supervisor.poll()
            news.poll()
            self._write_facts(folder, supervisor, port)

    def _watch(self) -> None:
        """Between tasks: is the coordinator there, are its certificate and clock right, is there a newer roster?"""
        version = load_roster(self._home / roster_watch.FOLDER, now=_now()).version
        while not self._end.wait(WATCH_S):
            try:
                roster = self._preflight(None)
            except NotFedError as error:
                self._tell("coordinator", f"{error.title().removesuffix('.')}: {error}; {error.hint}")
                continue
            except OSError as error:  # a full disk, say: the next look may find room
                with suppress(OSError):
                    self._tell("machine", f"this machine refused: {error.strerror}")
                continue
            if self._told.pop("coordinator", None) is not None:
                note(self._home, f"{self._connection.coordinator} answers again")
            if roster.version != version:
                version = roster.version
                self._say(f"roster version {version}, until {format_time(roster.expires_at)}")

    def _tell(self, about: str, text: str) -> None:
        """Say and note it, unless it is what was said about this before."""
        if self._told.get(about) != text:
            self._told[about] = text
            note(self._home, text)
            if not self._follows_log:
                self._say(text)

    def _write_facts(self, folder: Path, supervisor: Supervisor, port: int) -> None:
        """HOME/flower/joining.json, for `status` and for whoever watches."""
        facts: dict[str, object] = {
            "schema": SCHEMA, "pid": os.getpid(), "address": self._connection.address, "port": port,
            "pids": supervisor.pids(), "rehearse": self._rehearse,
        }  # fmt: skip
        if facts != self._facts:
            self._facts = facts
            files.write_atomic(folder / FACTS_FILE, json.dumps(facts).encode() + b"\n", overwrite=True)


def children(home: Path, connection: Connection, *, port: int, rehearse: bool = False) -> list[Child]:
    """The two programs of a site, in the order in which they start; their files are written here.

    Args:
        home: absolute.
        port: of the loopback, for the SuperNode's own interface.
    """
    folder = Home(home).private_folder(FLOWER)
    tls, secret = loopback_tls(folder / "tls"), folder / "superexec.secret"
    flower.write_superexec_secret(secret)
    write_shims(folder / "bin", allowed=CLIENT_APP)
    environment = flower.flower_environment(
        folder / "home", path_first=folder / "bin",
        extra={SITE: str(home)} | ({REHEARSE: "1"} if rehearse else {}),
    )  # fmt: skip
    supernode = flower.supernode_command(
        address=connection.address, ca=connection.ca, key=home / NODE_KEY, node_config={"home": str(home)}, port=port,
        tls=tls, secret=secret,
    )  # fmt: skip
    superexec = flower.superexec_command(port=port, ca=tls.ca, secret=secret)
    return [
        Child(
            name=SUPERNODE, argv=[sys.executable, "-P", "-m", "not_fed.site.supernode", *supernode[1:]],
            env=environment, log=folder / f"{SUPERNODE}.log", cwd=folder,
            ready=lambda: listens(port),
        ),
        Child(name=SUPEREXEC, argv=superexec, env=environment, log=folder / f"{SUPEREXEC}.log", cwd=folder),
    ]  # fmt: skip


def joining(home: Path) -> dict[str, object] | None:
    """What the process that keeps `home` connected says about itself; None when there is none."""
    return facts_of(home / LOCK_FILE, home / FLOWER / FACTS_FILE)


def _joined(home: Path) -> AlreadyJoined:
    return AlreadyJoined(
        where=str(home), expected="a home that nobody keeps connected", got="one that is",
        hint="not-fed site status shows by which process",
    )  # fmt: skip


def _may_pass(error: PeerError) -> bool:
    return isinstance(error, CoordinatorUnreachable) or error.code.startswith("bank-")


def _forget_facts(folder: Path) -> None:
    (folder / FACTS_FILE).unlink(missing_ok=True)


def _now() -> datetime:
    return datetime.now(UTC)
