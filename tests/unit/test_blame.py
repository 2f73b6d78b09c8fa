"""Who stands out among the organs of a refused round: by the measures of the whole vectors, and in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from not_fed.aggregation import robust
from not_fed.aggregation.blame import NobodyToBlame, Scores, score_organs
from not_fed.aggregation.robust import Contribution
from not_fed.organ.checkpoint import Place

Rows = NDArray[np.float32]


def stored(folder: Path, name: str, numbers: Rows) -> dict[str, Place]:
    """Two tensors in one file."""
    file, cut = folder / f"{name}.bin", len(numbers) // 3
    file.write_bytes(numbers.astype("<f4").tobytes())
    return {
        "layers.0": Place(file, "F32", (cut,), 0, 4 * cut),
        "layers.1": Place(file, "F32", (len(numbers) - cut,), 4 * cut, 4 * len(numbers)),
    }


def scored(folder: Path, rows: Rows, *, start: Rows | None = None) -> Scores:
    origin = np.zeros(rows.shape[1], np.float32) if start is None else start
    organs = [
        Contribution(name=f"site-{number}", sha256="0" * 64, tensors=stored(folder, f"site-{number}", row))
        for number, row in enumerate(rows)
    ]
    return score_organs(organs, start=stored(folder, "start", origin))


def honest(sites: int, *, seed: int = 0, size: int = 600) -> Rows:
    """A common direction, and as much again of each site's own."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=size) + draw.normal(size=(sites, size))).astype(np.float32)


def test_the_measures_are_those_of_whole_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside plain NumPy over everything at once; in blocks of seven numbers, around a start that is far from 0."""
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 42)
    start = np.random.default_rng(9).normal(size=600).astype(np.float32) * 50
    rows = (start + honest(5, seed=1)).astype(np.float32)
    moved: NDArray[Any] = rows.astype(np.float64) - start
    median = np.median(moved, axis=0)
    for number, score in enumerate(scored(tmp_path, rows, start=start).each):
        own, others = moved[number], np.delete(moved, number, axis=0)
        assert score.name == f"site-{number}"
        assert score.norm == pytest.approx(np.linalg.norm(own))
        assert score.distance == pytest.approx(np.linalg.norm(own - median))
        assert score.cosine == pytest.approx(own @ median / np.linalg.norm(own) / np.linalg.norm(median))
        apart = np.linalg.norm(others - others.mean(axis=0), axis=1)
        assert score.spread_without == pytest.approx(np.sqrt(np.mean(apart**2)))


@pytest.mark.parametrize("sites", [3, 5, 8])
@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (lambda row: row * 10, "times as long as the middle one's"),
        (lambda row: -row, "points away from the median of all"),
        (lambda row: row + 40 * np.eye(1, len(row), dtype=np.float32)[0] * 20, "as far from the median of all"),
    ],
    ids=["scaled", "flipped", "one weight"],
)
def test_an_organ_that_scales_or_flips_its_change_is_named_with_the_measure(
    tmp_path: Path, sites: int, lie: Callable[[Rows], Rows], word: str
) -> None:
    rows = honest(sites)
    assert scored(tmp_path, rows).outliers() == (), "control: nobody lied"
    rows[1] = lie(rows[1])
    found = scored(tmp_path, rows)
    (outlier,) = found.outliers()
    assert outlier.name == "site-1"
    assert word in outlier.words
    assert found.odd_one_out.name == "site-1"


def test_where_nobody_changed_anything_nobody_stands_out(tmp_path: Path) -> None:
    still = scored(tmp_path, np.zeros((4, 30), np.float32))
    assert still.outliers() == ()
    assert {(one.norm, one.distance, one.cosine, one.spread_without) for one in still.each} == {(0.0, 0.0, 0.0, 0.0)}
    rows = np.zeros((4, 30), np.float32)
    rows[2] = 1.0
    (outlier,) = scored(tmp_path, rows).outliers()
    assert outlier.words.startswith("its change is immeasurably many times as long")


def test_a_liar_who_keeps_to_the_others_length_and_direction_is_not_found(tmp_path: Path) -> None:
    """What the page says it cannot see: a tenth of the change replaced by something else of the same length."""
    rows = honest(5)
    rows[1, :60] = rows[1, :60][::-1]
    assert scored(tmp_path, rows).outliers() == ()


def test_of_two_organs_nobody_is_the_odd_one(tmp_path: Path) -> None:
    with pytest.raises(NobodyToBlame):
        scored(tmp_path, honest(2))
