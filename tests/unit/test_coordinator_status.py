"""What `coordinator status` says, with and without everything in its place."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.cli.coordinator_status import lines_of
from not_fed.coordinator.serving import AlreadyServed, serving, serving_alone
from not_fed.coordinator.state import Answered, CoordinatorState, Step
from not_fed.coordinator.status import SCHEMA, coordinator_status
from not_fed.files import NotAFile
from tests.support.coordinators import Hub

STEP = Step(run="run-1", round=1, kind="train")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("status"))


@pytest.fixture
def hub(made: Hub, tmp_path: Path) -> Hub:
    return made.copy(tmp_path)


def answered(site: str, status: str, code: str | None = None) -> Answered:
    return Answered(
        run="run-1", round=1, kind="train", site=site, status=status, code=code, sealed_sha256=None,  # type: ignore[arg-type]
        size_bytes=0, seconds=1.0,
    )  # fmt: skip


def test_a_new_coordinator_says_who_may_connect_and_that_nothing_has_begun(hub: Hub) -> None:
    status = coordinator_status(hub.home)
    assert (status["schema"], status["serving"], status["run"]["outcome"]) == (SCHEMA, None, None)
    assert [(one["site"], one["admitted"], one["last_seen"]) for one in status["sites"]] == [
        ("clinic", True, None), ("ward", True, None),
    ]  # fmt: skip
    assert status["problems"] == []
    json.dumps(status)


def test_it_says_whose_answer_is_awaited_since_when_and_what_it_said_instead(hub: Hub) -> None:
    state = CoordinatorState(hub.home)
    state.start_run("run-1", plan_sha256="ab" * 32)
    state.issue(STEP, task=b"task", expires=datetime(2100, 1, 1, tzinfo=UTC))
    state.open_attempt(STEP)
    state.answer(answered("clinic", "sealed"))
    state.answer(answered("ward", "waiting", "outside-hours"))
    run = coordinator_status(hub.home)["run"]
    assert [(one["site"], one["said"]) for one in run["awaited"]] == [("ward", "outside-hours")]
    assert run["awaited"][0]["since"] == run["steps"][0]["attempts"][0]["opened"]
    text = "\n".join(f"{label} {value}" for label, value in lines_of(coordinator_status(hub.home)))
    assert "awaited ward, since" in text
    assert "outside-hours" in text


def test_it_says_which_rounds_were_closed_with_too_few_and_who_was_missing(hub: Hub) -> None:
    state = CoordinatorState(hub.home)
    state.start_run("run-1", plan_sha256="ab" * 32)
    state.open_attempt(STEP)
    state.close_attempt(STEP, outcome="too-few", missing={"ward": "silent"})
    status = coordinator_status(hub.home)
    assert status["run"]["steps"][0]["attempts"][0]["missing"] == {"ward": "silent"}
    assert status["run"]["awaited"] == []
    assert any("missing: ward (silent)" in value for _, value in lines_of(status))


def test_when_a_site_was_seen_and_what_it_runs_is_shown(hub: Hub) -> None:
    moment = datetime(2026, 11, 24, 12, tzinfo=UTC)
    CoordinatorState(hub.home).saw_site("ward", at=moment, version="0.0.9")
    ward = coordinator_status(hub.home)["sites"][1]
    assert (ward["last_seen"], ward["not_fed"]) == ("2026-11-24T12:00:00Z", "0.0.9")


@pytest.mark.parametrize("missing", ["roster", "federation.toml", "tls/gateway.crt"])
def test_a_status_is_given_whatever_else_is_missing(hub: Hub, missing: str) -> None:
    path = hub.home / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status = coordinator_status(hub.home)
    assert len(status["problems"]) == 1
    assert lines_of(status)[-1][0] == "problem"


def test_a_folder_that_is_no_coordinators_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAFile):
        coordinator_status(tmp_path)


def test_two_never_serve_one_home_and_status_knows_when_one_does(hub: Hub) -> None:
    assert serving(hub.home) is None
    with serving_alone(hub.home):
        assert serving(hub.home) == {}
        (hub.home / "flower").mkdir()
        (hub.home / "flower" / "serve.json").write_text('{"pid": 7}')
        assert coordinator_status(hub.home)["serving"] == {"pid": 7}
        with pytest.raises(AlreadyServed), serving_alone(hub.home):
            pass
    assert serving(hub.home) is None
