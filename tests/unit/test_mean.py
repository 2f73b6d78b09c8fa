"""The mean of organs is FedAvg of the span; a mean of LoRA factors is not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from not_fed.aggregation.mean import BadWeight
from not_fed.organ.anatomy import Span
from not_fed.organ.extract import extract
from not_fed.organ.merge import OrganMean, OrgansDiffer, mean_organs
from not_fed.organ.train import TrainSettings, train
from tests.support import tiny
from tests.support.folders import records, save_base


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("organs")
    base = save_base(tiny.tiny_llama(), folder / "base")
    settings = TrainSettings(span=Span(1, 3), batch_tokens=60)
    return [
        train(base, records=records(20, seed=seed), settings=settings, out=folder / f"{seed}.organ").organ.path
        for seed in range(3)
    ]


def test_the_mean_is_the_weighted_mean_of_every_tensor(organs: list[Path], tmp_path: Path) -> None:
    mean, weights = OrganMean(), [1.0, 2.0, 5.0]
    for organ, weight in zip(organs, weights, strict=True):
        mean.add(organ, weight=weight)
    out = mean.write(tmp_path / "mean.organ")
    files = [safe_open(path, framework="pt") for path in (*organs, out.path)]
    for name in out.places:
        *parts, got = (file.get_tensor(name).double() for file in files)
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / 8.0
        assert torch.allclose(got, expected, atol=1e-7), name
    assert len(out.manifest.parents) == 3


def test_sums_on_disk_give_the_same_bytes(organs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    digests = set()
    for number, scratch in enumerate((None, tmp_path / "scratch")):
        mean = OrganMean(scratch=scratch)
        for organ, weight in zip(organs, [1.0, 2.0, 5.0], strict=True):
            mean.add(organ, weight=weight)
        digests.add(mean.write(tmp_path / f"{number}.organ").sha256)
    assert len(digests) == 1
    assert list((tmp_path / "scratch").iterdir()) == []  # no name leads to a sum


def test_memory_stays_at_a_tensor_whatever_the_size_and_number_of_organs(tmp_path: Path) -> None:
    """In a process of its own: peak of resident memory over what it had after the first addition of a small organ."""
    tensors = {f"layers.0.part{number}.weight": torch.ones(1 << 20) for number in range(64)}  # 256 MiB in all
    for number in range(3):
        save_file(tensors, tmp_path / f"{number}.organ")
    script = f"""
import resource, sys
from pathlib import Path
from not_fed.aggregation.mean import WeightedMean
from not_fed.bench.harness import peak_memory_mb, reset_peak_memory, resting_memory_mb
rest = resting_memory_mb()
reset_peak_memory()
mean = WeightedMean(scratch=Path({str(tmp_path)!r}))
for number in range(3):
    mean.add(Path({str(tmp_path)!r}) / f"{{number}}.organ")
for name in mean.tensors():
    assert float(mean.tensor(name).sum()) == 1 << 20
print(peak_memory_mb() - rest)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200  # torch itself takes 100 with its first tensor; with the sums in memory it is 700


def test_any_order_gives_the_same_bytes(organs: list[Path], tmp_path: Path) -> None:
    digests = {
        mean_organs(order, out=tmp_path / f"{number}.organ").sha256
        for number, order in enumerate(itertools.permutations(organs))
    }
    assert len(digests) == 1


def test_organs_of_different_places_have_no_mean(organs: list[Path], tmp_path: Path) -> None:
    other = save_base(tiny.tiny_llama(seed=4), tmp_path / "other")
    mean = OrganMean()
    mean.add(organs[0])
    for span in (Span(1, 3), Span(0, 2)):
        with pytest.raises(OrgansDiffer):
            mean.add(extract(other, span=span, out=tmp_path / f"{span.start}.organ").path)
    assert (
        mean.write(tmp_path / "mean.organ").manifest.parents
        == mean_organs(organs[:1], out=tmp_path / "m").manifest.parents
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive_numbers(organs: list[Path], weight: float) -> None:
    with pytest.raises(BadWeight):
        OrganMean().add(organs[0], weight=weight)


def test_a_mean_of_low_rank_factors_is_not_the_mean_of_their_products() -> None:
    """Why organs are full weights: mean(B) @ mean(A) is another matrix than mean(B @ A)."""
    source = torch.Generator().manual_seed(0)
    left = torch.randn(3, 8, 2, generator=source)
    right = torch.randn(3, 2, 8, generator=source)
    exact = (left @ right).mean(dim=0)
    naive = left.mean(dim=0) @ right.mean(dim=0)
    assert (exact - naive).norm() > 0.5 * exact.norm()
