"""A line that is cut for a minute and one that is torn in its handshake: real processes, one round each."""

from __future__ import annotations

import time

import pytest

from tests.deployment.conftest import Start
from tests.support.deployed import Deployed, another_time

pytestmark = pytest.mark.faults
PLAN = {"retry_s": 2.0, "join_timeout_s": 200.0, "round_timeout_s": 300.0}
SITES = ["clinic", "ward"]
MINUTE_S = 60.0


@pytest.fixture(scope="module")
def fed(start: Start) -> Deployed:
    """Two sites that work, each behind a line of its own."""
    federation = start(rounds=2, plan=PLAN, sites=SITES)
    federation.serve()
    federation.join_all()
    federation.until("the first task has left", lambda: federation.has_task(1))
    return federation


def all_sealed(fed: Deployed, number: int) -> bool:
    return {site: one.status for site, one in fed.answers(number).items()} == dict.fromkeys(SITES, "sealed")


def test_a_network_that_is_cut_for_a_minute_costs_a_minute(fed: Deployed) -> None:
    with fed.held("ward", 1):
        for proxy in fed.proxies.values():
            proxy.cut()
        time.sleep(MINUTE_S)
        for proxy in fed.proxies.values():
            proxy.mend()
    fed.until_closed(1, timeout_s=240)
    assert all_sealed(fed, 1), fed.tell()


def test_a_connection_torn_in_its_handshake_is_made_again_without_hands(fed: Deployed) -> None:
    """What a load balancer does while nobody is behind it: Flower's own SuperNode would stay, and never ask again."""
    fed.proxies["ward"].cut()  # new connections are torn before they have said anything
    time.sleep(12.0)
    fed.proxies["ward"].mend()
    fed.until_closed(2, timeout_s=240)
    assert all_sealed(fed, 2), fed.tell()
    assert all(fed.commands[site].is_alive for site in SITES)


def test_a_site_whose_clock_is_a_day_off_is_told_so_and_not_connected(fed: Deployed) -> None:
    """libfaketime shows its processes tomorrow; everybody else, and the gateway, have today."""
    assert fed.commands["ward"].stop() == 0
    tomorrow = fed.join("ward", environment=another_time("+1d"))
    assert tomorrow.wait(timeout_s=60) == 6
    assert "clock-apart" in tomorrow.said()
