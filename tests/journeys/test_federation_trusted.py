"""A trusted aggregator: it may open organs, averages them one at a time, and seals the mean to every site."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from not_fed import files
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import read_passport
from not_fed.home import Home
from not_fed.organ.organ import read_organ
from not_fed.simulation import SimulationResult, check_server, evaluate, run, summarise
from tests.support.federation import SITES, a_task, an_organ, ask, lose, ref, refusal, seal_as, signed, tiny_prepared


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Three sites, two rounds, one of them counting double."""
    return run(tiny_prepared(tmp_path_factory.mktemp("trusted"), mode="trusted", weights={"ward": 2.0}))


def test_every_site_ends_with_the_same_aggregate(result: SimulationResult) -> None:
    for number in (1, 2):
        assert len({files.sha256(rounds[number]) for rounds in result.aggregates.values()}) == 1
    assert set(result.aggregates) == set(SITES)


def test_the_aggregate_is_plain_fedavg(result: SimulationResult) -> None:
    weights = {"clinic": 1.0, "hospice": 1.0, "ward": 2.0}
    for number in (1, 2):
        organs = {site: load_file(result.own[site][number]) for site in SITES}
        mean = load_file(result.aggregates["clinic"][number])
        for name, tensor in mean.items():
            expected = torch.stack([organs[site][name].double() * weights[site] for site in SITES]).sum(0) / 4.0
            torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=0, atol=0)


def test_sites_start_the_next_round_from_the_aggregate(result: SimulationResult) -> None:
    for site in SITES:
        assert read_organ(result.own[site][2]).manifest.parents == (files.sha256(result.aggregates[site][1]),)


def test_the_aggregates_passport_names_its_parents(result: SimulationResult) -> None:
    home, organ = result.prepared.sites["ward"], result.aggregates["ward"][2]
    now = datetime.now(UTC)
    passport = read_passport(passport_path(organ).read_bytes().rstrip(), roster=Home(home).roster(now), now=now)
    assert passport.author == "coordinator"
    assert set(passport.parents) == {files.sha256(result.own[site][2]) for site in SITES}


def test_sites_get_the_aggregate_and_no_organ_of_others(result: SimulationResult) -> None:
    for home in result.prepared.sites.values():
        assert not list((home / "organs").rglob("from-*"))
    assert result.stored["sealed organs"]["count"] == 6
    assert result.stored["sealed aggregates"]["count"] == 2


def test_no_opened_organ_stays_with_the_aggregator(result: SimulationResult) -> None:
    assert not list(result.prepared.coordinator.rglob("*.organ"))
    assert check_server(result).clean


def test_a_lost_site_does_not_stop_the_others(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="trusted", plan={"round_timeout_s": 0.3})
    result = run(prepared, drop=lose(prepared.sites, site="ward", group="train-2"))
    assert len({files.sha256(rounds[2]) for rounds in result.aggregates.values()}) == 1
    parents = read_organ(result.aggregates["ward"][2]).manifest.parents
    assert set(parents) == {files.sha256(result.own[site][2]) for site in ("clinic", "hospice")}


def test_an_aggregate_from_anybody_else_is_refused(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="trusted")
    theirs = seal_as(prepared, "ward", an_organ(prepared, tmp_path / "theirs.organ"))
    for sender, code in (("ward", "parcels-differ"), ("coordinator", "parcel-other-sender")):
        order = a_task(prepared, round=2, parcels=(ref(sender, theirs),))
        assert refusal(ask(prepared, "clinic", signed(prepared, order), [theirs])) == code
    assert not list((prepared.sites["clinic"] / "organs").rglob("aggregate*"))
    own = seal_as(prepared, "coordinator", an_organ(prepared, tmp_path / "own.organ"))
    order = a_task(prepared, round=2, parcels=(ref("coordinator", own),))
    assert refusal(ask(prepared, "hospice", signed(prepared, order), [own])) is None  # control


def test_perplexity_covers_every_model_and_domain(result: SimulationResult) -> None:
    perplexity = evaluate([result])
    assert set(perplexity) == {"base", "aggregate", *SITES}
    for domains in perplexity.values():
        assert set(domains) == {*SITES, "mean"}
        assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in domains.values())
    assert perplexity["aggregate"]["mean"]["value"] < perplexity["base"]["mean"]["value"]
    summary = summarise([result], perplexity, seconds=1.0)
    assert set(summary) >= {
        "schema", "sites", "rounds", "mode", "perplexity", "bytes_sent", "seconds", "server_saw",
    }  # fmt: skip
    assert summary["schema"] == "not-fed/federated/1"
