"""What goes through the bank goes on where it was cut off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.coordinator.bank import Bank
from not_fed.site.bank_client import BankFull, BankRefused, BankUnreachable, FetchedDiffers
from not_fed.trust.roster import load_roster, pin_roster, root_sha256
from tests.support.coordinators import Hub
from tests.support.gateways import Gate, SealedFile, open_gate, seal_bytes
from tests.support.proxy import Proxy

MIB = 1 << 20
SIZE = 100 * MIB


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def gate(hub: Hub) -> Iterator[Gate]:
    with open_gate(hub) as opened:
        yield opened


@pytest.fixture
def sealed(hub: Hub, tmp_path: Path) -> SealedFile:
    return seal_bytes(hub, tmp_path / "sealed", sender="clinic", size_bytes=SIZE)


def test_after_a_cut_only_what_is_missing_is_sent(gate: Gate, sealed: SealedFile) -> None:
    with Proxy(gate.port) as proxy, gate.bank("clinic", port=proxy.port) as bank:
        proxy.cut_after(50 * MIB)  # in the middle of a chunk
        bank.upload(sealed.path, label=sealed.label)
        sent = proxy.carried["up"]
    assert Bank.at(gate.home).get(sealed.sha256)[0] == sealed.path.read_bytes()
    assert SIZE < sent < SIZE + 6 * MIB  # one chunk twice, at most, and what HTTP and TLS add


def test_a_restart_of_either_side_sends_nothing_again(hub: Hub, sealed: SealedFile) -> None:
    with (
        open_gate(hub) as first,
        Proxy(first.port) as proxy,
        first.bank("clinic", port=proxy.port, patience_s=0) as bank,
    ):
        proxy.cut_after(57 * MIB)
        with pytest.raises(BankUnreachable):
            bank.upload(sealed.path, label=sealed.label)
    arrived = sum(path.stat().st_size for path in (hub.home / "bank" / sealed.sha256).glob("0*"))
    assert 50 * MIB <= arrived < 57 * MIB
    with open_gate(hub) as second, Proxy(second.port) as proxy, second.bank("clinic", port=proxy.port) as bank:
        bank.upload(sealed.path, label=sealed.label)
        assert proxy.carried["up"] < SIZE - arrived + 2 * MIB
        assert Bank.at(hub.home).holds(sealed.sha256)


def test_a_download_goes_on_after_a_cut(gate: Gate, sealed: SealedFile, tmp_path: Path) -> None:
    with gate.bank("clinic") as bank:
        bank.upload(sealed.path, label=sealed.label)
    out = tmp_path / "got"
    with Proxy(gate.port) as proxy:
        proxy.cut_after(54 * MIB, direction="down")
        with gate.bank("ward", port=proxy.port, patience_s=0) as bank, pytest.raises(BankUnreachable):
            bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=out)
    assert not out.exists()
    with Proxy(gate.port) as proxy, gate.bank("ward", port=proxy.port) as bank:
        bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=out)
        assert proxy.carried["down"] < SIZE - 48 * MIB
    assert out.read_bytes() == sealed.path.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "fetching" in path.name] == []


def test_a_part_that_was_altered_meanwhile_is_fetched_again(gate: Gate, sealed: SealedFile, tmp_path: Path) -> None:
    with gate.bank("clinic") as bank:
        bank.upload(sealed.path, label=sealed.label)
    part = tmp_path / ".got.fetching"
    part.write_bytes(os.urandom(9 * MIB))
    with gate.bank("ward") as bank:
        bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=tmp_path / "got")
        with pytest.raises(FetchedDiffers):
            bank.download(sealed.sha256, size_bytes=sealed.size_bytes - 1, out=tmp_path / "other")
    assert (tmp_path / "got").read_bytes() == sealed.path.read_bytes()


def test_a_full_bank_says_so(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path)
    toml = hub.home / "coordinator.toml"
    toml.write_text(toml.read_text().replace("[bank]\n", "[bank]\nmax_bytes = 1000000\n", 1))
    sealed = seal_bytes(hub, tmp_path / "sealed", sender="clinic", size_bytes=2 * MIB)
    with open_gate(hub) as gate, gate.bank("clinic") as bank:
        with pytest.raises(BankFull):
            bank.upload(sealed.path, label=sealed.label)
        assert "bank-full" in [code for code, _, _ in gate.problems()]


def test_a_refusal_comes_with_its_code(gate: Gate, hub: Hub, tmp_path: Path) -> None:
    sealed = seal_bytes(hub, tmp_path / "later", sender="clinic", size_bytes=MIB, round_number=7)
    with gate.bank("clinic") as bank, pytest.raises(BankRefused, match="not-awaited"):
        bank.upload(sealed.path, label=sealed.label)


def test_a_newcomer_pins_the_roster_that_the_coordinator_hands_on(gate: Gate, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "fetched").mkdir()
    with gate.bank("clinic") as bank:
        bank.fetch_roster(tmp_path / "fetched")
    root = root_sha256(hub.home / "roster")
    pin_roster(tmp_path / "fetched", root_sha256=root, out=tmp_path / "roster")
    now = datetime.now(UTC)
    assert load_roster(tmp_path / "roster", now=now).members == load_roster(hub.home / "roster", now=now).members
