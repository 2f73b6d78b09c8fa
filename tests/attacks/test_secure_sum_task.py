"""What a coordinator tries with the signed tasks that carry a secure sum, at a whole site."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from not_fed.envelope.summing import KeyRef, SumCall, start_sha256
from not_fed.envelope.task import Task
from not_fed.home import Home
from not_fed.organ.anatomy import Span
from not_fed.simulation import Prepared
from tests.support.federation import SITES, SPAN, a_task, ask, refusal, signed, tiny_prepared


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_prepared(tmp_path, mode="secure-sum")


def a_call(prepared: Prepared, **changes: Any) -> SumCall:  # noqa: ANN401
    plan = Home(prepared.coordinator).roster(datetime.now(UTC)).plans[prepared.run]
    places = prepared.base.span_places(Span(*SPAN))
    fields: dict[str, Any] = {
        "v": 1, "plan_sha256": plan.sha256, "federation": "tiny", "run": prepared.run, "round": 1,
        "start_sha256": start_sha256(prepared.base.sha256, {}),
        "parameters": sum(math.prod(place.shape) for place in places.values()),
        "cohort": tuple(KeyRef(site=name, key_sha256=hashlib.sha256(name.encode()).hexdigest()) for name in SITES),
    }  # fmt: skip
    return SumCall(**{**fields, **changes})


def a_sum_task(prepared: Prepared, call: SumCall, **changes: Any) -> Task:  # noqa: ANN401
    return a_task(prepared, mode="secure-sum", recipients=("coordinator",), call=call, **changes)


def answered(prepared: Prepared, call: SumCall, **changes: Any) -> str | None:  # noqa: ANN401
    return refusal(ask(prepared, "ward", signed(prepared, a_sum_task(prepared, call, **changes))))


def test_a_site_trains_from_what_the_call_names_or_not_at_all(prepared: Prepared) -> None:
    """S10. The call names another start than the one that came, to have sites train from different models.

    Powers: signs any task and call. Control: with the start that everybody has, the next check is reached, the keys'.
    """
    assert answered(prepared, a_call(prepared, start_sha256="ab" * 32)) == "sum-other-start"
    assert not list((prepared.sites["ward"] / "organs").rglob("own-*"))
    assert answered(prepared, a_call(prepared)) == "bad-sum-paper"  # it was trained; these keys are nobody's


@pytest.mark.parametrize("change", [{"parameters": 1 << 39}, {"parameters": 7}])
def test_a_site_computes_no_masks_beyond_its_layers(prepared: Prepared, change: dict[str, int]) -> None:
    """Own. The call asks for masks of another length than the layers have, up to terabytes of them.

    Powers: signs any task and call. Control: the layers' own length passes this check.
    """
    assert answered(prepared, a_call(prepared, **change)) == "sum-other-plan"
    assert answered(prepared, a_call(prepared)) != "sum-other-plan"


@pytest.mark.parametrize(
    "change", [{"quorum": 1}, {"rounds": 3}, {"spans": (SPAN, (0, 1))}, {"sites": ("clinic", "hospice", "lab", "ward")}]
)
def test_a_task_says_what_the_signed_plan_says(prepared: Prepared, change: dict[str, Any]) -> None:
    """Own. The task keeps to the plan's digest, and says another quorum, other rounds, layers or voters.

    Powers: signs any task. Control: with the plan's own words this check is passed.
    """
    code = answered(prepared, a_call(prepared), **change)
    assert code in ("sum-other-plan", "policy-rounds", "policy-span", "policy-partner")
    assert answered(prepared, a_call(prepared)) not in ("sum-other-plan", "policy-rounds")
