"""What `coordinator serve` settles before it starts anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from not_fed.coordinator.deployment import load_deployment
from not_fed.coordinator.serve import AddressTaken, serve
from not_fed.coordinator.serving import AlreadyServed, serving, serving_alone
from not_fed.errors import NotFedError
from not_fed.processes.tls import CertificateExpired, create_ca, issue_server_certificate
from tests.support.coordinators import Hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(made: Hub, tmp_path: Path) -> Hub:
    return made.copy(tmp_path)


def test_a_second_serve_of_the_same_home_is_refused(hub: Hub) -> None:
    with serving_alone(hub.home):
        assert serving(hub.home) == {}
        with pytest.raises(AlreadyServed):
            serve(hub.home, say=lambda _: None)
    assert serving(hub.home) is None
    with serving_alone(hub.home):  # the lock went with its holder
        pass


def test_an_address_that_somebody_has_is_named(hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        toml = hub.home / "coordinator.toml"
        listen = load_deployment(hub.home).listen  # type: ignore[union-attr]
        toml.write_text(toml.read_text().replace(f'"{listen}"', f'"127.0.0.1:{other.getsockname()[1]}"'))
        with pytest.raises(AddressTaken, match="in use"):
            serve(hub.home, say=lambda _: None)
    assert not (hub.home / "flower" / "superlink.log").exists()


def test_a_given_certificate_that_is_over_is_refused_before_anything_starts(hub: Hub) -> None:
    """Its own one is renewed instead: that is tested where certificates are."""
    given = hub.home / "given"
    given.mkdir()
    create_ca(given)
    issue_server_certificate(given, ca=given, hosts=("localhost",), days=0)
    toml = hub.home / "coordinator.toml"
    text = toml.read_text().replace('ca = "tls/ca.crt"\nca_key = "tls/ca.key"\n', "")
    toml.write_text(text.replace("tls/gateway", "given/server"))
    with pytest.raises(CertificateExpired):
        serve(hub.home, say=lambda _: None)


def test_a_coordinator_that_is_not_on_the_roster_does_not_serve(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path)
    plan = hub.home / "federation.toml"
    plan.write_text(plan.read_text().replace('name = "hub"', 'name = "other"', 1))
    with pytest.raises(NotFedError) as refused:
        serve(hub.home, say=lambda _: None)
    assert refused.value.exit_code == 6
