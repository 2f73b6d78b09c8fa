"""A federation whose rounds train one span after another: the result is a body of several organs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from not_fed import files
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.task import parse_task
from not_fed.organ.organ import read_organ
from not_fed.simulation import Prepared, SimulationResult, Tap, run
from tests.support.federation import SITES, tiny_prepared

SPANS = [[1, 2], [2, 3]]


def in_turn(folder: Path, mode: str, *, patience: Mapping[str, float] = {}) -> Prepared:
    """Four rounds, two spans in turn."""
    policy = {site: {"spans": SPANS, "max_rounds": 4} for site in SITES}
    plan = {"span": None, "spans": SPANS, "rounds": 4, **patience}
    return tiny_prepared(folder, mode=mode, plan=plan, policy=policy)


@pytest.fixture(scope="module", params=["bank", "trusted", "secure-sum"])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return run(in_turn(tmp_path_factory.mktemp("spans"), request.param))


def test_each_rounds_aggregate_is_of_its_own_span(result: SimulationResult) -> None:
    for number in (1, 2, 3):  # the last one's is made when it is received
        spans = {read_organ(rounds[number]).manifest.span for rounds in result.aggregates.values() if number in rounds}
        assert {(span.start, span.stop) for span in spans} == {tuple(SPANS[(number - 1) % 2])}


def test_every_site_ends_with_the_same_body(result: SimulationResult) -> None:
    for number in (1, 2, 3, 4):
        assert len({files.sha256(rounds[number]) for rounds in result.aggregates.values()}) == 1
    assert [tuple(SPANS[number % 2]) for number in range(2)] == [
        (read_organ(organ).manifest.span.start, read_organ(organ).manifest.span.stop) for organ in result.body
    ]


def test_each_aggregate_is_the_mean_of_what_was_trained_on_the_same_body(result: SimulationResult) -> None:
    for number in (3, 4):
        organs = [load_file(result.own[site][number]) for site in SITES]
        for name, tensor in load_file(result.aggregates["clinic"][number]).items():
            mean = torch.stack([organ[name].double() for organ in organs]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)


def test_a_round_starts_from_the_newest_organ_of_its_own_span(result: SimulationResult) -> None:
    parents = read_organ(result.own["ward"][3]).manifest.parents
    assert files.sha256(result.aggregates["ward"][1]) in parents
    assert files.sha256(result.aggregates["ward"][2]) not in parents


def test_what_was_opened_before_is_not_opened_again(result: SimulationResult) -> None:
    opened = [
        one["sealed_sha256"] for note in result.notes["ward"] for one in note.get("opened", []) if one is not None
    ]
    assert len(opened) == len(set(opened))
    assert len(opened) == (8 if result.prepared.mode == "bank" else 4)


def test_an_organ_that_is_gone_is_asked_for_again(tmp_path: Path) -> None:
    prepared = in_turn(tmp_path, "trusted", patience={"retry_s": 0.2})

    def drop(message: Message) -> bool:
        if message.metadata.group_id == "train-3":  # what ward opened in the rounds before is lost meanwhile
            shutil.rmtree(prepared.sites["ward"] / "organs", ignore_errors=True)
        return False

    result = run(prepared, drop=drop)
    line = CoordinatorState(prepared.coordinator).tasks(prepared.run)[-1]
    assert {ref.round for ref in parse_task(line).parcels} == {3, 4}
    assert len({files.sha256(rounds[4]) for rounds in result.aggregates.values()}) == 1


class Cut(Exception):
    """The coordinator's process ends."""


def test_a_run_that_is_cut_off_ends_with_the_same_body(result: SimulationResult, tmp_path: Path) -> None:
    if result.prepared.mode != "secure-sum":  # the longest way; the others are cut off in their own journeys
        pytest.skip("one mode is enough")
    prepared = in_turn(tmp_path, result.prepared.mode)
    left = 20

    def tap(direction: Any, data: bytes) -> None:  # noqa: ANN401
        nonlocal left
        left -= 1
        if left == 0:
            raise Cut

    cut: Tap = tap
    with pytest.raises(Cut):
        run(prepared, tap=cut)
    again = run(prepared)
    for number in (3, 4):
        for name, tensor in load_file(result.aggregates["clinic"][number]).items():
            torch.testing.assert_close(load_file(again.aggregates["clinic"][number])[name], tensor, rtol=0, atol=1e-7)
