"""`bench paper` on a tiny model: every row is a real checkpoint, and finished rows are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from not_fed.bench.organ_texts import Texts
from not_fed.bench.paper import Size, _Protocol, bench_paper, table
from not_fed.organ.checkpoint import Base, open_base
from tests.support.tiny import tiny_llama
from tests.unit.test_bench_dp import saved
from tests.unit.test_bench_organ import some_texts

TINY = Size(records=20, test=6, positions=(0.0, 1.0), recovery_steps=1, lr=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(saved(tiny_llama(), tmp_path_factory.mktemp("base")))


def test_the_protocol_measures_real_checkpoints_and_none_a_second_time(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains: dict[str, Texts] = {"one": some_texts(), "two": some_texts()}
    out = tmp_path / "paper.json"
    result = bench_paper(base, domains=domains, size=TINY, out=out)
    rows = {name: row["one"]["value"] for name, row in result["rows"].items()}
    assert len(rows) == 1 + 2 * 3 + 2 + 5 + 2  # base, organs by place, controls, recoveries, matrix
    assert rows["organ trained in-place, replaced"] == pytest.approx(rows["organ of one"])
    assert rows["organ trained in-place, replaced"] < rows["base model"]
    assert rows["random layers, replaced"] != rows["base model"]
    assert [path.name for path in tmp_path.iterdir()] == ["paper.json"]  # the models are gone
    assert "the paper says" in table(result)
    monkeypatch.setattr(_Protocol, "_perplexity", None)
    assert bench_paper(base, domains=domains, size=TINY, out=out)["rows"] == result["rows"]
