"""Flower at a coordinator: where its files lie, how its two programs are started, and what a keeper asks of it.

HOME/flower/state.db              the SuperLink's database: registrations and open runs survive a restart
HOME/flower/home, cli             a FLWR_HOME each for the programs and for the `flwr` command
HOME/flower/bin                   first on superexec's PATH: the only app that starts is our own server app
HOME/flower/bundle                what sites are sent, and pin by its digest
HOME/flower/tls                   certificates of this machine's loopback
HOME/flower/superexec.secret      between SuperLink and superexec
HOME/flower/registered.json       which connection keys the SuperLink was told, as which nodes

A key is never unregistered: Flower would not take it again, even for a site whose revocation was a mistake. Who may
connect now, the gateway decides with each request.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path

from not_fed import files
from not_fed.coordinator.serving import FLOWER
from not_fed.errors import NotFedError
from not_fed.home import COORDINATOR
from not_fed.keys.node_key import node_key_id
from not_fed.processes import flower
from not_fed.processes.bundle import build_bundle
from not_fed.processes.ports import free_port, listens
from not_fed.processes.shims import write_shims
from not_fed.processes.supervisor import Child
from not_fed.processes.tls import loopback_tls

SUPERLINK, SUPEREXEC = "superlink", "superexec"
SERVER_APP = {"flwr-serverapp": "not_fed.coordinator.serverapp"}
START_S = 60.0
MAX_REGISTERED_BYTES = 1 << 20


class FlowerCommands:
    """Flower's side of one coordinator; `flower` is HOME/flower, made by the caller."""

    names = (SUPERLINK, SUPEREXEC)

    def __init__(self, home: Path) -> None:
        """Write what both programs need. Raises FlowerMissing, BundleMissing, FlowerFailed: not-fed is not whole."""
        self._home, self._folder = home.resolve(), home.resolve() / FLOWER
        self.port = free_port()
        self._tls = loopback_tls(self._folder / "tls")
        self._secret, self._cli = self._folder / "superexec.secret", self._folder / "cli"
        flower.write_superexec_secret(self._secret)
        flower.flwr_config(self._cli, port=self.port, ca=self._tls.ca)
        self._app, self.bundle_sha256 = build_bundle(self._folder / "bundle")
        write_shims(self._folder / "bin", allowed=SERVER_APP)

    @property
    def url(self) -> str:
        """Where the gateway finds the SuperLink."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """What the gateway checks the SuperLink's certificate against."""
        return self._tls.ca

    def children(self) -> list[Child]:
        """The two programs, in the order in which they start."""
        superlink = flower.superlink_command(
            port=self.port, tls=self._tls, database=self._folder / "state.db", secret=self._secret
        )
        superexec = flower.superexec_command(port=self.port, ca=self._tls.ca, secret=self._secret)
        return [
            self._child(SUPERLINK, superlink, ready=lambda: listens(self.port)), self._child(SUPEREXEC, superexec)
        ]  # fmt: skip

    def registered(self) -> set[str]:
        """Keys that the SuperLink knows: those it was told, as far as it still has their nodes."""
        there = {node.node_id for node in flower.list_nodes(home_folder=self._cli)}
        return {key_id for key_id, node in self._told().items() if node in there}

    def register(self, site: str, node_key: str) -> None:
        """Tell it a key; one that it knows already is fine."""
        told = self._told()
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".pub") as public:
            public.write(node_key.encode() + b"\n")
            public.flush()
            with suppress(flower.NodeKnown):
                told[node_key_id(node_key)] = flower.register_node(
                    Path(public.name), site=site, home_folder=self._cli
                )  # fmt: skip
        files.write_atomic(self._folder / "registered.json", json.dumps(told).encode(), overwrite=True)

    def submit(self) -> int:
        """Start the server app."""
        return flower.run_app(self._app, home_folder=self._cli)

    def unfinished(self) -> list[int]:
        """Runs that are not over."""
        return [run.run_id for run in flower.list_runs(home_folder=self._cli) if not run.is_over]

    def stop(self, run: int) -> None:
        """End one; it may have ended by itself meanwhile."""
        try:
            flower.stop_run(run, home_folder=self._cli)
        except flower.FlowerFailed:
            if self.end_of(run) is None:
                raise

    def end_of(self, run: int) -> str | None:
        """How it ended, in Flower's words; None while it goes on."""
        found = next((one for one in flower.list_runs(home_folder=self._cli) if one.run_id == run), None)
        if found is None:
            return "forgotten by the SuperLink"
        return found.status if found.is_over else None

    def _child(self, name: str, argv: list[str], *, ready: object = None) -> Child:
        environment = flower.flower_environment(
            self._folder / "home", path_first=self._folder / "bin", extra={COORDINATOR: str(self._home)}
        )
        return Child(
            name=name, argv=argv, env=environment, log=self._folder / f"{name}.log", cwd=self._folder, ready=ready,  # type: ignore[arg-type]
            ready_timeout_s=START_S,
        )  # fmt: skip

    def _told(self) -> dict[str, int]:
        """Key -> node, as it was told; a damaged file means that all are told again, which is fine."""
        with suppress(NotFedError, ValueError, AttributeError):
            data = files.read_regular(self._folder / "registered.json", max_bytes=MAX_REGISTERED_BYTES)
            return {str(key): int(node) for key, node in json.loads(data).items()}
        return {}
