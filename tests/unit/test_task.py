"""The coordinator's signed order, and a site's signed greeting."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.envelope.task import (
    GREETING_TYPE,
    PROTOCOL,
    TASK_TYPE,
    ClockApart,
    Greeting,
    OtherProtocol,
    ParcelRef,
    Task,
    Training,
    check_protocol,
    sign_greeting,
    sign_task,
    verify_greeting,
    verify_task,
)
from not_fed.errors import NotFedError
from not_fed.keys import Steward, dsse
from not_fed.settings import BadSettings, load
from not_fed.simulation.federation import TrainingTable
from not_fed.trust.roster import TrustedRoster, create_roster, load_roster
from tests.support.trust import NOW, Site

TURNS = ((1, 3), (0, 1))
HUB, CLINIC, STRANGER = Site.make("hub"), Site.make("clinic"), Site.make("stranger")
FIELDS: dict[str, Any] = {
    "v": 1,
    "id": "0" * 32,
    "federation": "lowlands",
    "run": "first",
    "round": 1,
    "rounds": 2,
    "mode": "bank",
    "kind": "train",
    "base_sha256": "ab" * 32,
    "span": (1, 3),
    "spans": ((1, 3),),
    "training": Training(lr=1e-3, epochs=2, batch_tokens=64, max_tokens=32),
    "privacy": None,
    "sites": ("clinic", "ward"),
    "recipients": ("clinic", "ward"),
    "parcels": (),
    "coordinator": "hub",
    "issued": NOW,
    "expires": NOW + timedelta(days=1),
    "roster_version": 1,
}


@pytest.fixture(scope="module")
def roster(tmp_path_factory: pytest.TempPathFactory) -> TrustedRoster:
    folder: Path = tmp_path_factory.mktemp("task") / "roster"
    members = [(HUB.public, ["relay"]), (CLINIC.public, ["author", "receiver"])]
    steward = Steward.generate("steward")
    create_roster(folder, federation="lowlands", steward=steward, members=members, now=NOW - timedelta(days=2))
    return load_roster(folder, now=NOW)


def task(**changes: object) -> Task:
    return Task(**{**FIELDS, **changes})


def parcel(sender: str, digest: str, *, round_number: int = 1) -> ParcelRef:
    return ParcelRef(sender=sender, round=round_number, sealed_sha256=digest * 32, size_bytes=1, weight=1.0)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(NotFedError) as error:
        call()
    return error.value.code


def test_a_task_comes_back_as_it_was_signed(roster: TrustedRoster) -> None:
    order = task(round=2, parcels=(parcel("clinic", "aa"), parcel("ward", "bb")))
    assert verify_task(sign_task(order, signer=HUB.signer), roster=roster, now=NOW) == order


@pytest.mark.parametrize(
    ("changes", "signer", "later", "code"),
    [
        ({}, CLINIC, timedelta(0), "signature-refused"),
        ({"coordinator": "clinic"}, CLINIC, timedelta(0), "member-role"),
        ({"coordinator": "stranger"}, STRANGER, timedelta(0), "member-unknown"),
        ({"federation": "highlands"}, HUB, timedelta(0), "bad-task"),
        ({"roster_version": 2}, HUB, timedelta(0), "other-roster"),
        ({}, HUB, timedelta(days=2), "not-current"),
        ({}, HUB, timedelta(hours=-1), "not-current"),
    ],
)
def test_a_changed_or_foreign_task_is_refused(
    roster: TrustedRoster, changes: dict[str, Any], signer: Site, later: timedelta, code: str
) -> None:
    line = sign_task(task(**changes), signer=signer.signer)
    assert code_of(lambda: verify_task(line, roster=roster, now=NOW + later)) == code


def test_a_task_edited_after_signing_is_refused(roster: TrustedRoster) -> None:
    envelope = json.loads(sign_task(task(), signer=HUB.signer))
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["training"]["epochs"] = 9000
    envelope["payload"] = base64.b64encode(canonical.dumps(payload)).decode()
    line = canonical.dumps(envelope)
    assert code_of(lambda: verify_task(line, roster=roster, now=NOW)) == "signature-refused"


@pytest.mark.parametrize("change", [{"surprise": 1}, {"round": "1"}, {"v": 2}, {"span": [3, 1]}, {"training": None}])
def test_a_signed_task_of_another_shape_is_refused(roster: TrustedRoster, change: dict[str, Any]) -> None:
    payload = {**json.loads(task().to_payload()), **change}
    line = dsse.sign(canonical.dumps(payload), payload_type=TASK_TYPE, signer=HUB.signer)
    assert code_of(lambda: verify_task(line, roster=roster, now=NOW)) == "signed-malformed"


def test_a_proximal_term_beside_a_rank_is_refused_where_it_is_written(tmp_path: Path) -> None:
    """Not by every site in the middle of a run."""
    with pytest.raises(ValueError, match="no proximal beside a rank"):
        Training(lr=1e-3, epochs=1, batch_tokens=64, max_tokens=32, rank=2, proximal=0.1)
    (file := tmp_path / "training.toml").write_text("rank = 2\nproximal = 0.1\n")
    with pytest.raises(BadSettings, match="no proximal beside a rank"):
        load(TrainingTable, file)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 3},
        {"kind": "receive", "round": 1, "parcels": (parcel("clinic", "aa"),)},
        {"round": 2},
        {"parcels": (parcel("clinic", "aa"),)},
        {"round": 2, "parcels": (parcel("clinic", "aa"), parcel("clinic", "bb"))},
        {"round": 2, "parcels": (parcel("clinic", "aa"), parcel("ward", "aa"))},
        {"spans": ((1, 3), (2, 4))},
        {"round": 2, "spans": ((1, 3), (0, 1))},
        {"rounds": 4, "round": 4, "spans": ((1, 3),), "parcels": (parcel("clinic", "aa"),)},
        {"rounds": 4, "round": 3, "spans": TURNS, "parcels": (parcel("clinic", "aa"),)},
        {
            "rounds": 4, "round": 4, "span": (0, 1), "spans": TURNS,
            "parcels": (parcel("clinic", "aa"), parcel("clinic", "bb", round_number=2)),
        },
        {"recipients": ("clinic", "ward", "lab")},
        {"mode": "trusted"},
        {"expires": NOW + timedelta(days=31)},
    ],
)  # fmt: skip
def test_a_task_that_contradicts_itself_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        task(**changes)


def test_spans_take_turns_and_each_ones_newest_round_comes_with_a_task() -> None:
    """Rounds 1 to 4 train two spans in turn; with round 4 come the organs of round 3 and of round 2."""
    two, three = parcel("clinic", "bb", round_number=2), parcel("clinic", "cc", round_number=3)
    fourth = task(rounds=4, round=4, span=(0, 1), spans=TURNS, parcels=(two, three))
    assert [fourth.span_of(number) for number in range(1, 5)] == [(1, 3), (0, 1), (1, 3), (0, 1)]
    last = task(rounds=3, round=3, kind="receive", spans=TURNS, parcels=(two, three))
    assert last.terms()["spans"] == [[1, 3], [0, 1]]


def greeting(**changes: object) -> Greeting:
    fields: dict[str, Any] = {
        "v": 1,
        "federation": "lowlands",
        "site": "clinic",
        "coordinator": "hub",
        "nonce": "1" * 32,
        "log_size": 0,
        "not_fed": "1.2.3",
        "protocol": PROTOCOL,
    }
    return Greeting(**{**fields, "issued": NOW, **changes})


def test_a_greeting_names_its_site(roster: TrustedRoster) -> None:
    line = sign_greeting(greeting(), signer=CLINIC.signer)
    assert verify_greeting(line, coordinator="hub", nonce="1" * 32, roster=roster, now=NOW).site == "clinic"


@pytest.mark.parametrize(
    ("changes", "signer", "code"),
    [
        ({"coordinator": "other"}, CLINIC, "bad-greeting"),
        ({"nonce": "2" * 32}, CLINIC, "bad-greeting"),
        ({"federation": "highlands"}, CLINIC, "bad-greeting"),
        ({"issued": NOW - timedelta(hours=1)}, CLINIC, "clock-apart"),
        ({}, STRANGER, "signature-refused"),
        ({"site": "stranger"}, STRANGER, "member-unknown"),
        ({"site": "hub"}, HUB, "member-role"),
    ],
)
def test_a_greeting_for_another_coordinator_or_nonce_is_refused(
    roster: TrustedRoster, changes: dict[str, Any], signer: Site, code: str
) -> None:
    line = sign_greeting(greeting(**changes), signer=signer.signer)
    assert code_of(lambda: verify_greeting(line, coordinator="hub", nonce="1" * 32, roster=roster, now=NOW)) == code


def test_a_site_whose_clock_is_off_by_a_day_is_named(roster: TrustedRoster) -> None:
    for off in (timedelta(days=-1), timedelta(days=1)):
        line = sign_greeting(greeting(issued=NOW + off), signer=CLINIC.signer)
        with pytest.raises(ClockApart) as error:
            verify_greeting(line, coordinator="hub", nonce="1" * 32, roster=roster, now=NOW)
        assert "clinic" in error.value.where
        assert error.value.got == f"1440 minutes {'ahead' if off > timedelta(0) else 'behind'}"
    near = sign_greeting(greeting(issued=NOW - timedelta(minutes=4)), signer=CLINIC.signer)
    assert verify_greeting(near, coordinator="hub", nonce="1" * 32, roster=roster, now=NOW).site == "clinic"


@pytest.mark.parametrize("spoken", [PROTOCOL + 1, PROTOCOL - 1, None, "1", [1]])
def test_a_side_that_speaks_another_protocol_is_refused(spoken: object) -> None:
    check_protocol(PROTOCOL, where="order")
    with pytest.raises(OtherProtocol):
        check_protocol(spoken, where="order")


def test_a_greeting_is_no_task_and_a_task_no_greeting(roster: TrustedRoster) -> None:
    hello = sign_greeting(greeting(), signer=CLINIC.signer)
    order = sign_task(task(), signer=HUB.signer)
    assert GREETING_TYPE != TASK_TYPE
    assert code_of(lambda: verify_task(hello, roster=roster, now=NOW)) == "signed-malformed"
    assert (
        code_of(lambda: verify_greeting(order, coordinator="hub", nonce="1" * 32, roster=roster, now=NOW))
        == "signed-malformed"
    )
