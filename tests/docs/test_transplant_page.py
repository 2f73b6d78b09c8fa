"""What docs/transplant.md shows is what one sees."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from not_fed.errors import NotFedError, UsageError
from not_fed.organ.anatomy import BloodTypeDiffers, Span, SpanOutside
from not_fed.organ.body import SpansOverlap
from not_fed.organ.fit import LayerTypesDiffer, OtherBase, ShapeDiffers
from not_fed.organ.transplant import ChangedSincePlan, UndoDiffers
from not_fed.organ.transplant.delta import DeltaOverflows, NoArithmetic, NothingLearned
from not_fed.organ.transplant.insert import LayersByNumber, NoIdentity
from tests.support import tiny
from tests.support.commands import runner
from tests.support.folders import save_base
from tests.support.learnt import fine_tuned, learnt_organ
from tests.support.typed import agree, commands_of

PAGE = (Path(__file__).parents[2] / "docs" / "transplant.md").read_text()


def test_the_page_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    fine_tuned(base, tmp_path / "ours")
    learnt_organ(base, Span(1, 3), tmp_path / "knee.organ")
    learnt_organ(base, Span(2, 4), tmp_path / "heart.organ", seed=2)
    monkeypatch.chdir(tmp_path)
    not_fed, typed = runner(monkeypatch, capsys), list(commands_of(PAGE))
    assert len(typed) == 6
    for one in typed:
        done = not_fed(*shlex.split(one.command)[1:])
        assert done.code == one.exit_code, done
        assert agree(one.expected, (done.err if done.code else done.out).splitlines()), (one.command, done)


REFUSALS: tuple[type[NotFedError], ...] = (
    UsageError, BloodTypeDiffers, ShapeDiffers, LayerTypesDiffer, OtherBase, SpanOutside, SpansOverlap, NothingLearned,
    NoArithmetic, LayersByNumber, NoIdentity, ChangedSincePlan, DeltaOverflows,
)  # fmt: skip


def test_the_page_names_every_refusal_and_no_other() -> None:
    table = PAGE.partition("## What is refused")[2].partition("##")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)} == {error.code for error in REFUSALS}
    assert f"`{UndoDiffers.code}`" in PAGE
