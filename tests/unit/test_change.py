"""What training changed as a row of numbers, and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from not_fed.organ.anatomy import Span
from not_fed.organ.change import ChangeOfOthers, change, count, move
from not_fed.organ.checkpoint import open_base
from not_fed.organ.extract import extract
from not_fed.organ.organ import OrganInfo, read_organ
from tests.support.folders import save_base
from tests.support.tiny import tiny_llama


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> tuple[OrganInfo, OrganInfo]:
    folder = tmp_path_factory.mktemp("change")
    save_base(tiny_llama(), folder / "base")
    start = extract(open_base(folder / "base"), span=Span(1, 3), out=folder / "start.organ")
    generator = torch.Generator().manual_seed(7)
    moved = {
        name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(start.path).items()
    }
    save_file(moved, folder / "trained.organ", metadata=start.manifest.as_metadata())
    return start, read_organ(folder / "trained.organ")


def test_a_start_moved_by_its_change_is_what_was_trained(organs: tuple[OrganInfo, OrganInfo], tmp_path: Path) -> None:
    start, trained = organs
    row = np.concatenate(list(change(trained.places, start=start.places))).astype(np.float64)
    assert len(row) == count(start.places) == sum(math.prod(place.shape) for place in start.places.values())
    moved = move(
        start.places, by=lambda first, last: row[first:last], out=tmp_path / "moved.organ",
        metadata=start.manifest.as_metadata(),
    )  # fmt: skip
    for name, tensor in load_file(trained.path).items():
        torch.testing.assert_close(load_file(moved.path)[name], tensor, rtol=0, atol=1e-7)


def test_the_row_does_not_depend_on_the_order_of_tensors_in_the_file(organs: tuple[OrganInfo, OrganInfo]) -> None:
    start, trained = organs
    turned = dict(reversed(list(start.places.items())))
    row, other = (np.concatenate(list(change(trained.places, start=places))) for places in (start.places, turned))
    assert np.array_equal(row, other)


def test_a_change_from_other_tensors_is_refused(organs: tuple[OrganInfo, OrganInfo]) -> None:
    start, trained = organs
    fewer = dict(list(start.places.items())[1:])
    with pytest.raises(ChangeOfOthers):
        next(change(trained.places, start=fewer))
