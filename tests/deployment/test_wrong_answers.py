"""A site that answers late, again, with another round's organ, or under another bundle: real processes, one round each.

Its client app is the installed one with one thing changed (`tests/support/rogue.py`); the coordinator names the site
and what it did, and the round of the others is not touched. The tests run in order on one federation.
"""

from __future__ import annotations

import pytest

from tests.deployment.conftest import Start
from tests.support import rogue
from tests.support.deployed import Deployed

pytestmark = pytest.mark.faults
ROUNDS = 5
PLAN = {"min_answers": 1, "round_timeout_s": 25.0, "retry_s": 2.0}


@pytest.fixture(scope="module")
def fed(start: Start) -> Deployed:
    """Two sites; one answer is enough."""
    federation = start(rounds=ROUNDS, plan=PLAN, sites=["clinic", "ward"])
    federation.serve()
    federation.join_all()
    ward = federation.prepared.sites["ward"]
    federation.until("the ward has its programs", (ward / "flower" / "bin" / "flwr-clientapp").is_file)
    rogue.put_in_place(ward, "late")
    return federation


def status(fed: Deployed, number: int, site: str = "ward") -> tuple[str, str | None]:
    one = fed.answers(number)[site]
    return one.status, one.code


def test_a_site_that_never_answers_is_noted_as_silent_at_the_deadline(fed: Deployed) -> None:
    fed.until_closed(1)
    assert status(fed, 1) == ("silent", "silent")
    assert status(fed, 1, "clinic") == ("sealed", None)


def test_a_late_answer_is_noted_under_its_name_and_changes_nothing(fed: Deployed) -> None:
    ward = fed.prepared.sites["ward"]
    rogue.reform(ward)
    (ward / rogue.GO).touch()
    noted = fed.until("the late answer is noted", lambda: "late-answer ward" in fed.problems() and fed.problems())
    assert "round 1" in noted
    assert status(fed, 1) == ("silent", "silent")
    fed.until_closed(2)
    assert status(fed, 2)[0] == "sealed"


def test_another_rounds_organ_is_refused_by_name_and_the_round_goes_on(fed: Deployed) -> None:
    ward = fed.prepared.sites["ward"]
    rogue.put_in_place(ward, "another-round")
    fed.until_closed(4)
    found = [status(fed, number) for number in (3, 4)]
    assert ("bad-answer", "wrong-answer") in found, fed.tell()
    assert "wrong-answer ward" in fed.problems()
    assert [status(fed, number, "clinic")[0] for number in (3, 4)] == ["sealed", "sealed"]
