"""A federation whose sites learn through low-rank factors: what they send is weights, and their mean is exact."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.simulation import run
from tests.support.federation import SITES, tiny_prepared

RANK = 2


def test_the_aggregate_has_the_directions_of_all_sites_together(tmp_path: Path) -> None:
    """A mean of factors would have the rank of one site's; the mean of what was added has the sum of theirs."""
    result = run(tiny_prepared(tmp_path, mode="trusted", rounds=1, training={"rank": RANK}))
    aggregate = result.aggregates[SITES[0]][1]
    own = [load_file(result.own[site][1]) for site in SITES]
    span = read_organ(aggregate).span
    start = load_file(extract(result.prepared.base, span=span, out=tmp_path / "start.organ").path)
    name = "layers.0.mlp.down_proj.weight"
    mean = load_file(aggregate)[name].double() - start[name].double()
    torch.testing.assert_close(
        mean, torch.stack([organ[name].double() for organ in own]).mean(0) - start[name].double(), rtol=0, atol=1e-6
    )
    ranks = [int(torch.linalg.matrix_rank(organ[name] - start[name], rtol=1e-4)) for organ in own]
    assert ranks == [RANK] * len(SITES)
    assert int(torch.linalg.matrix_rank(mean, rtol=1e-4)) == RANK * len(SITES)
    assert all(torch.equal(organ["layers.0.input_layernorm.weight"], start["layers.0.input_layernorm.weight"])
               for organ in own)  # fmt: skip
