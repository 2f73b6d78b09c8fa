"""Two sites join a SuperLink that somebody else runs: no gateway, no bank, and a server app by `flwr run`.

It is a plain `flower-superlink` with TLS and node authentication and a plain `flower-superexec`, as Flower's manual
starts them; whoever runs it has installed not-fed for the server app, and knows nothing else of it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from not_fed import files
from not_fed.home import COORDINATOR
from not_fed.keys.node_key import create_node_key
from not_fed.processes import flower
from not_fed.processes.bundle import expected_bundle_sha256, write_bundle
from not_fed.processes.ports import free_port, listens
from not_fed.processes.tls import loopback_tls
from not_fed.simulation import run
from tests.support.deployed import Deployed
from tests.support.federation import tiny_prepared

pytestmark = pytest.mark.faults

SITES = ("clinic", "ward")
CONNECTION = """\
address = "127.0.0.1:{port}"
ca = "coordinator.crt"
federation = "tiny"
coordinator = "coordinator"
gateway = false
"""


class Theirs:
    """The SuperLink, and what its administrator types."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.port, self.secret = folder, free_port(), folder / "superexec.secret"
        self.tls, self.cli = loopback_tls(folder / "tls"), folder / "cli"
        flower.write_superexec_secret(self.secret)
        flower.flwr_config(self.cli, port=self.port, ca=self.tls.ca)

    def start(self, deployed: Deployed) -> None:
        """Both programs, with Flower's own commands for apps."""
        link = flower.superlink_command(
            port=self.port, tls=self.tls, database=self.folder / "state.db", secret=self.secret
        )
        self._start(deployed, "superlink", link)
        deployed.until("their SuperLink listens", lambda: listens(self.port))
        self._start(deployed, "superexec", flower.superexec_command(port=self.port, ca=self.tls.ca, secret=self.secret))

    def register(self, site: str, home: Path) -> None:
        """`flwr supernode register node.pub`."""
        flower.register_node(home / "node.pub", site=site, home_folder=self.cli)

    def run(self, deployed: Deployed) -> None:
        """`flwr run bundle`; it is over when the run is complete."""
        write_bundle(self.folder / "bundle")
        flower.run_app(self.folder / "bundle", home_folder=self.cli)
        deployed.until("the run is complete", deployed.is_complete, timeout_s=180)

    def _start(self, deployed: Deployed, name: str, words: list[str]) -> None:
        environment = flower.flower_environment(
            self.folder / "home",
            extra={COORDINATOR: str(deployed.prepared.coordinator), "NOT_FED_TEST": str(deployed.folder)},
        )
        with (deployed.folder / f"00-{name}.said").open("wb") as out:
            subprocess.Popen(
                words, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    pins = {site: {"bundle_sha256": [expected_bundle_sha256()]} for site in SITES}
    prepared = tiny_prepared(tmp_path, sites=SITES, policy=pins, plan={"join_timeout_s": 120.0})
    with Deployed(prepared, port=0, proxies={}) as federation:
        yield federation


def test_two_sites_train_together_through_a_superlink_that_somebody_else_runs(
    deployed: Deployed, tmp_path: Path
) -> None:
    theirs = Theirs(deployed.folder / "theirs")
    theirs.start(deployed)
    for site, home in deployed.prepared.sites.items():
        (home / "node.pub").write_text(create_node_key(home / "node.key") + "\n")
        theirs.register(site, home)
        (home / "connection.toml").write_text(CONNECTION.format(port=theirs.port))
        shutil.copy(theirs.tls.ca, home / "coordinator.crt")
        deployed.join(site)
    theirs.run(deployed)
    assert {one.status for one in deployed.state.answers("first")} == {"sealed", "received"}
    assert len(set(deployed.aggregates(2).values())) == 1
    (tmp_path / "alone").mkdir()
    alone = run(tiny_prepared(tmp_path / "alone", sites=SITES))
    assert files.sha256(alone.aggregates["ward"][2]) == deployed.aggregates(2)["ward"]
