"""`not-fed bench aggregation` from end to end, small: that both sides compute the right thing, and its shape."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from not_fed.bench import aggregation
from not_fed.bench.aggregation import (
    FULL,
    HELPER,
    HELPER_LOST,
    PEER,
    QUICK,
    QUICK_SHAPES,
    REVEAL,
    SERVER,
    SITE,
    Cohort,
    PieceFailed,
    Row,
    bench_aggregation,
    missing,
    table,
)
from not_fed.bench.aggregation_picture import aggregation_picture
from not_fed.bench.harness import Times
from not_fed.cli import main as command
from tests.support.trust import listing

(COHORT,) = QUICK
PARAMETERS = 64 * 576 + 576
OURS = [SITE, HELPER, REVEAL, SERVER, missing(1), HELPER_LOST]
FACTS = {"sites", "way", "part", "cpu_s", "repeats", "bytes_out", "bytes_in", "extra_mib", "vectors"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command prints and writes."""
    place = tmp_path_factory.mktemp("bench")
    (place / "room").mkdir()
    words = ["not-fed", "bench", "aggregation", "--quick", "--json", "--folder", str(place / "room")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr("sys.argv", [*words, "--out", str(place / "result.json")])
        command.main()
    assert not done.value.code
    assert not listing(place / "room")
    found: dict[str, Any] = json.loads((place / "result.json").read_text())
    return found


def test_each_part_of_each_way_has_a_row_with_its_spread_bytes_and_memory(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    assert measured["schema"] == "not-fed/bench-aggregation/1"
    assert measured["parameters"] == PARAMETERS
    assert [row["part"] for row in rows if row["way"] == "ours"] == OURS
    assert [row["part"] for row in rows if row["way"] == "secagg+"] == [SITE, SERVER, missing(1)]
    assert [row["part"] for row in rows if row["way"] == "plain"][:2] == [SITE, SERVER]
    for row in rows:
        assert set(row) == FACTS
        assert row["cpu_s"]["low"] <= row["cpu_s"]["median"] <= row["cpu_s"]["high"]
        assert row["bytes_out"] or row["bytes_in"]
        assert row["extra_mib"] >= 0


def test_our_sum_is_the_plain_fixed_point_sum_bit_for_bit(measured: dict[str, Any]) -> None:
    (ours,) = (check for check in measured["checks"] if check["way"] == "ours")
    assert ours["equals_plain_sum"] is True


def test_the_peer_computes_the_mean_within_its_own_rounding(measured: dict[str, Any]) -> None:
    (peer,) = (check for check in measured["checks"] if check["way"] == "secagg+")
    assert set(peer["error"]) == {"all", "lost"}
    assert 0 < max(peer["error"].values()) < peer["step"]
    assert len(peer["sites_cpu_s"]) == COHORT.sites


def test_the_bytes_are_those_of_the_vectors_and_little_more(measured: dict[str, Any]) -> None:
    rows = {(row["way"], row["part"]): row for row in measured["rows"]}
    assert 4 * PARAMETERS < rows["ours", SITE]["bytes_out"] < 4 * PARAMETERS + 20_000
    assert 8 * PARAMETERS < rows["secagg+", SITE]["bytes_out"] < 8 * PARAMETERS + 20_000
    helpers = COHORT.plan().thresholds().helpers
    assert (COHORT.sites + helpers) * 4 * PARAMETERS < rows["ours", SERVER]["bytes_in"]
    assert rows["ours", missing(1)]["bytes_in"] < rows["ours", SERVER]["bytes_in"]


def test_the_table_and_the_picture_show_every_way_and_say_what_follows(measured: dict[str, Any]) -> None:
    text = table(measured)
    for words in ("secure sum", "SecAgg+", "plain mean", "server, uploads missing", "GB/s", "floor"):
        assert words in text
    assert "MISSED" in aggregation.conclusion(measured) or "met" in aggregation.conclusion(measured)
    assert aggregation_picture(measured).startswith(b"\x89PNG")
    assert len(measured["floors"]) == 5
    assert {ratio["peer"] for ratio in measured["ratios"]} == {"secagg+"}


@pytest.mark.parametrize(
    ("cohort", "sparse"), [(FULL[0], None), (FULL[1], (11, 9)), (FULL[2], (15, 10)), (QUICK[0], None)]
)
def test_the_sparse_graph_keeps_what_all_neighbours_promise(cohort: Cohort, sparse: tuple[int, int] | None) -> None:
    assert cohort.sparse == sparse
    if sparse is not None:
        shares, threshold = sparse
        assert 2 * threshold > shares + cohort.collude
        assert shares - cohort.lost >= threshold
        assert shares - 1 > cohort.collude + cohort.lost


def test_the_peer_is_right_with_a_sparse_graph_too() -> None:
    settings = {"piece": "round", "shapes": [[50], [7, 9]], "sites": 7, "shares": 5, "threshold": 3, "lost": 1,
                "clip": 2.0**-4, "repeats": 2}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", PEER, json.dumps(settings)], capture_output=True, check=True)
    check = json.loads(done.stdout)["check"]
    assert 0 < max(check["error"].values()) < check["step"]


def test_a_piece_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "OURS", "not_fed.no_such_module")
    with pytest.raises(PieceFailed, match="limits, 4 sites"):
        bench_aggregation(cohorts=QUICK, shapes=QUICK_SHAPES, repeats=1, folder=tmp_path)
    assert not listing(tmp_path)


def test_a_target_that_is_missed_is_called_missed() -> None:
    def row(part: str, *, mib: float, vectors: float = 0.0) -> dict[str, Any]:
        cpu_s = Times(1, 1, 1)
        return asdict(Row(sites=4, way="ours", part=part, cpu_s=cpu_s, repeats=1, extra_mib=mib, vectors=vectors))

    ratios = [
        {"sites": 4, "peer": "secagg+", "site": 5.0, "server_lost": 10.1},
        {"sites": 4, "peer": "secagg+ sparse", "site": 4.9, "server_lost": 9.9},
    ]
    rows = [row(SITE, mib=48.0), row(SERVER, mib=1.0, vectors=3.1)]
    first, dense, sparse = aggregation.conclusion({"cohorts": [{"sites": 4}], "ratios": ratios, "rows": rows}).split(
        "; "
    )
    assert first == "4 sites: site's memory over its input 48 MiB (met), server's memory 3.1 vectors (MISSED)"
    assert dense.endswith("site 5.0 times faster (met), server with drop-outs 10.1 times faster (met)")
    assert sparse.endswith("site 4.9 times faster (MISSED), server with drop-outs 9.9 times faster (MISSED)")
