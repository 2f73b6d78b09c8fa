"""The log in a real federation: every organ is in it, every site sees it grow, two faces are named."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.coordinator.kept_log import LogKeysDiffer, log_folder, open_log
from not_fed.coordinator.rounds import Order, Rounds
from not_fed.home import Home
from not_fed.simulation import Prepared, SimulationResult, run
from not_fed.site.parcels import Parcel
from not_fed.trust.log_checkpoint import log_origin
from not_fed.trust.log_folder import LogFolder
from not_fed.trust.log_memory import remembered
from tests.support.federation import SITES, a_task, an_organ, ask, refusal, seal_as, signed, tiny_prepared

ORIGIN = log_origin("tiny", "coordinator")
CLINIC, WARD, HOSPICE = SITES


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Three sites, two rounds, a coordinator that keeps a log."""
    return run(tiny_prepared(tmp_path_factory.mktemp("log"), log=True))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_prepared(tmp_path, log=True)


def test_the_log_has_every_organ_and_the_roster_and_nothing_else(result: SimulationResult) -> None:
    entries = [entry.split(b" ")[1] for entry in LogFolder(log_folder(result.prepared.coordinator)).entries()]
    assert entries == [b"roster", *[b"seal"] * 6]


def test_every_site_remembers_the_log_up_to_what_it_was_last_sent(result: SimulationResult) -> None:
    log = LogFolder(log_folder(result.prepared.coordinator))
    for home in result.prepared.sites.values():
        known = remembered(home / "roster", origin=ORIGIN)
        assert known is not None
        assert (known.size, known.root) == (7, log.root_at(7))
    assert all(one["status"] in ("sealed", "received") for one in result.answers)


def test_a_coordinator_that_starts_again_goes_on_in_the_same_log(prepared: Prepared) -> None:
    """Restarted after the first round: no entry twice, and the sites accept the growth."""
    now = datetime.now(UTC)
    first = Rounds(prepared.coordinator, now=now)
    assert first.log is not None
    size = first.log.size
    again = Rounds(prepared.coordinator, now=now)
    assert again.log is not None
    assert again.log.size == size == 1
    assert len(set(run(prepared).own)) == len(SITES)


def test_a_log_key_that_is_not_the_rosters_is_refused(prepared: Prepared) -> None:
    other = tiny_prepared(prepared.folder / "other", log=True)
    shutil.copyfile(prepared.coordinator / "passphrase", other.coordinator / "passphrase")
    shutil.rmtree(other.coordinator / "roster")
    shutil.copytree(prepared.coordinator / "roster", other.coordinator / "roster")
    home, now = Home(other.coordinator), datetime.now(UTC)
    assert open_log(Home(prepared.coordinator), name="coordinator", roster=home.roster(now), now=now)  # control
    shutil.rmtree(other.coordinator / "keys")
    shutil.copytree(_other_keys(prepared), other.coordinator / "keys")
    with pytest.raises(LogKeysDiffer):
        open_log(home, name="coordinator", roster=home.roster(now), now=now)


def _other_keys(prepared: Prepared) -> Path:
    """Keys of a coordinator with a log of its own, under the same passphrase."""
    from not_fed.keys import Secret, create_keys

    passphrase = (prepared.coordinator / "passphrase").read_bytes().strip()
    create_keys(
        prepared.folder / "keys", name="coordinator", passphrase=Secret(passphrase), work_factor=2, log=True
    )  # fmt: skip
    return prepared.folder / "keys"


def _second_round(prepared: Prepared, tmp_path: Path) -> Order:
    """Round 1 is over without anybody's training: what the coordinator would send to the clinic in round 2."""
    from not_fed.coordinator.rounds import Reply

    now = datetime.now(UTC)
    rounds = Rounds(prepared.coordinator, now=now)
    step = rounds.next_step()
    assert step is not None
    for site in SITES:
        rounds.order(step, site, now=now)
        parcel = seal_as(prepared, site, an_organ(prepared, tmp_path / f"{site}.organ"))
        assert (
            rounds.accept(step, site, Reply(label=parcel.label, sealed=parcel.sealed), seconds=1, now=now) == "sealed"
        )
    rounds.close(step, now=now)
    step = rounds.next_step()
    assert step is not None
    return rounds.order(step, CLINIC, now=now)


def _ask(prepared: Prepared, order: Order, **changes: bytes | list[bytes] | None) -> str | None:
    papers = {"log": order.log, "proofs": [parcel.proof or b"" for parcel in order.parcels]} | changes
    parcels = [Parcel(label=parcel.label, sealed=parcel.sealed) for parcel in order.parcels]
    kept = {name: value for name, value in papers.items() if value is not None}
    return refusal(ask(prepared, CLINIC, order.task, parcels, **kept))


def test_a_coordinator_that_withholds_the_log_or_a_proof_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    """Own. Organs that are not in the log are sent. Powers: the coordinator's own. Control: with proofs they are taken."""
    order = _second_round(prepared, tmp_path)
    proofs = [parcel.proof or b"" for parcel in order.parcels]
    assert _ask(prepared, order, log=None, proofs=None) == "log-withheld"
    assert _ask(prepared, order, proofs=[proofs[0], b""]) == "log-withheld"
    assert _ask(prepared, order, log=b"old 0\n\nnothing\n") == "note-malformed"
    assert _ask(prepared, order, proofs=list(reversed(proofs))) == "nothing-usable"  # each proves the other organ
    assert _ask(prepared, order) is None


def test_a_coordinator_that_shows_two_logs_is_named(prepared: Prepared, tmp_path: Path) -> None:
    """Own. One log for the clinic, another for the rest. Powers: log keys. Control: the log that only grew."""
    honest = tmp_path / "honest"
    shutil.copytree(prepared.coordinator, honest)
    order = _second_round(prepared, tmp_path)
    assert _ask(prepared, order) is None
    shutil.rmtree(prepared.coordinator)
    shutil.copytree(honest, prepared.coordinator)  # begins again, with other organs: another log of the same size
    forked = _second_round(prepared, tmp_path / "again") if (tmp_path / "again").mkdir() is None else order
    assert _ask(prepared, forked) == "log-forked"
    evidence = list((prepared.sites[CLINIC] / "roster" / "trusted").glob("log.evidence.*"))
    assert len(evidence) == 1


def test_without_a_log_on_the_roster_nothing_is_asked_for(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path)
    assert Rounds(prepared.coordinator, now=datetime.now(UTC)).log is None
    assert refusal(ask(prepared, CLINIC, signed(prepared, a_task(prepared)))) is None
