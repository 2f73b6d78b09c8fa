"""The log in a real federation: every organ is in it, every site sees it grow, two faces are named."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict

from not_fed.coordinator.kept_log import LogKeysDiffer, log_folder, open_log
from not_fed.coordinator.rounds import Order, Reply, Rounds
from not_fed.envelope.logged import label_entry
from not_fed.home import Home
from not_fed.simulation import Prepared, SimulationResult, run
from not_fed.trust.log_checkpoint import log_origin
from not_fed.trust.log_entries import entry
from not_fed.trust.log_folder import LogFolder, append_many, create_log
from not_fed.trust.log_memory import remembered
from not_fed.trust.log_tiles import LogDamaged
from tests.support.federation import SITES, Parcel, a_task, ask, parcel_in, refusal, signed, tiny_prepared

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
    found = LogFolder(log_folder(result.prepared.coordinator)).audit()
    assert {kind: count for kind, count in found.items() if count} == {"roster": 1, "seal": 6}
    assert result.stored["log entries"]["count"] == 7


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


def test_a_log_that_was_restored_from_an_old_copy_is_not_continued(prepared: Prepared, tmp_path: Path) -> None:
    """Own. The coordinator's disk set back, so that it forks its own log. Powers: that disk. Control: the true log."""
    now = datetime.now(UTC)
    Rounds(prepared.coordinator, now=now)
    shutil.copytree(log_folder(prepared.coordinator), tmp_path / "old")
    _second_round(prepared)
    shutil.move(log_folder(prepared.coordinator), tmp_path / "true")
    shutil.copytree(tmp_path / "old", log_folder(prepared.coordinator))
    with pytest.raises(LogDamaged):
        Rounds(prepared.coordinator, now=now)
    shutil.rmtree(log_folder(prepared.coordinator))
    shutil.move(tmp_path / "true", log_folder(prepared.coordinator))
    assert Rounds(prepared.coordinator, now=now).log


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


def _second_round(prepared: Prepared) -> Order:
    """Round 1 with every site, really trained; then what the coordinator would send to the clinic in round 2."""
    now = datetime.now(UTC)
    rounds = Rounds(prepared.coordinator, now=now)
    step = rounds.next_step()
    assert step is not None
    for site in SITES:
        parcel = parcel_in(_answer(prepared, rounds.order(step, site, now=now), site))
        reply = Reply(label=parcel.label, sealed=parcel.sealed)
        assert rounds.accept(step, site, reply, seconds=1, now=now) == "sealed"
    rounds.close(step, now=now)
    step = rounds.next_step()
    assert step is not None
    return rounds.order(step, CLINIC, now=now)


def _answer(
    prepared: Prepared, order: Order, site: str, **changes: bytes | list[bytes] | None
) -> RecordDict:  # fmt: skip
    papers = {"log": order.log, "proofs": [parcel.proof or b"" for parcel in order.parcels]} | changes
    parcels = [Parcel(label=parcel.label, sealed=parcel.sealed or b"") for parcel in order.parcels]
    kept = {name: value for name, value in papers.items() if value is not None}
    return ask(prepared, site, order.task, parcels, **kept)


def _ask(prepared: Prepared, order: Order, **changes: bytes | list[bytes] | None) -> str | None:
    return refusal(_answer(prepared, order, CLINIC, **changes))


def test_a_coordinator_that_withholds_the_log_or_a_proof_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    """Own. Organs that are not in the log are sent. Powers: the coordinator's. Control: the test after this one."""
    order = _second_round(prepared)
    proofs = [parcel.proof or b"" for parcel in order.parcels]
    assert _ask(prepared, order, log=None, proofs=None) == "log-withheld"
    assert _ask(prepared, order, proofs=[proofs[0], b""]) == "log-withheld"
    assert _ask(prepared, order, log=b"old 0\n\nnothing\n") == "log-note-malformed"
    swapped = _answer(prepared, order, CLINIC, proofs=list(reversed(proofs)))["answer"]  # each proves the other organ
    assert isinstance(swapped, ConfigRecord)
    left_out = swapped["left-out"]
    assert isinstance(left_out, list)
    assert [str(one).split(" ")[1] for one in left_out] == ["log-proof-refused"] * 2


def test_organs_that_come_with_their_proofs_are_taken(prepared: Prepared) -> None:
    """The control of the test above, in a federation of its own, since a task is answered once."""
    answer = _answer(prepared, _second_round(prepared), CLINIC)["answer"]
    assert isinstance(answer, ConfigRecord)
    assert (answer["received"], answer["left-out"]) == (2, [])


def test_a_coordinator_that_shows_two_logs_is_named(prepared: Prepared) -> None:
    """Own. One log for the clinic, another for the rest. Powers: log keys. Control: the log that only grew is taken."""
    order, home, now = _second_round(prepared), Home(prepared.coordinator), datetime.now(UTC)
    assert _ask(prepared, order) is None
    size = LogFolder(log_folder(home.folder)).checkpoint.size
    shutil.rmtree(log_folder(home.folder))
    create_log(log_folder(home.folder), federation="tiny", signer=home.log_signer(), now=now)
    labels = [label_entry(parcel.label) for parcel in order.parcels]
    others = [entry("seal", f"{number:064x}") for number in range(size - len(labels))]
    append_many(log_folder(home.folder), labels + others, signer=home.log_signer(), now=now)
    fork = LogFolder(log_folder(home.folder))
    assert fork.checkpoint.size == size
    proofs = [fork.proof(label) for label in labels]
    assert _ask(prepared, order, log=fork.consistency_text(0), proofs=proofs) == "log-forked"
    evidence = list((prepared.sites[CLINIC] / "roster" / "trusted").glob("log.evidence.*"))
    assert len(evidence) == 1
    assert _ask(prepared, order) is None  # the honest one still counts


def test_without_a_log_on_the_roster_nothing_is_asked_for(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path)
    assert Rounds(prepared.coordinator, now=datetime.now(UTC)).log is None
    assert refusal(ask(prepared, CLINIC, signed(prepared, a_task(prepared)))) is None
