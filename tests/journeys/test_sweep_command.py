"""`not-fed sweep` as typed: the table, the files, going on, a budget, and the command that it says comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.commands import Outcome, runner
from tests.support.folders import records, save_base

Run = Callable[..., Outcome]
SWEEP = ("sweep", "notes.jsonl", "--base", "base", "--out", "swept", "--lengths", "1,2", "--lr", 5e-3,
         "--batch-tokens", 60)  # fmt: skip


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `not-fed WORDS` in a folder with a base, and records of twenty people."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    save_base(tiny.tiny_llama(), tmp_path / "base")
    for name, texts in (("notes", records(60)), ("held", records(20, seed=9))):
        rows = [{"text": text, "patient_id": number // 3} for number, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return runner(monkeypatch, capsys)


def test_from_the_sweep_to_the_organ_that_it_recommends(not_fed: Run, tmp_path: Path) -> None:
    first = not_fed(*SWEEP, "--starts", "0,2")
    assert first.code == 0
    assert [line.split(" | ")[0] for line in first.out.splitlines() if line.startswith("| ")] == [
        "| span", "| 0:1", "| 0:2", "| 1:4", "| 2:3", "| 2:4"
    ]  # fmt: skip
    assert (tmp_path / "swept" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "swept").stat().st_mode & 0o077 == 0
    assert "without privacy" in first.err

    more = not_fed(*SWEEP, "--every", 1, "--json").result  # more spans of the same sweep
    kept = json.loads((tmp_path / "swept" / "result.json").read_text())
    assert more == kept
    assert more["schema"] == "not-fed/swept/1"
    assert [row["span"] for row in more["rows"]] == [[0, 1], [0, 2], [1, 2], [1, 3], [1, 4], [2, 3], [2, 4], [3, 4]]
    assert (more["records"], more["held_out_records"]) == (48, 12)  # whole people, a fifth of them held out

    cheap = min(more["rows"], key=lambda row: row["size_bytes"])["size_bytes"]
    small = not_fed(*SWEEP, "--every", 1, "--max-bytes", cheap, "--json").result["recommended"]
    assert small["span"][1] - small["span"][0] == 1
    none = not_fed(*SWEEP, "--every", 1, "--max-bytes", cheap - 1)
    assert (none.code, "recommended  none: no span is within" in none.out) == (0, True)

    trained = not_fed(*shlex.split(more["recommended"]["command"])[1:], "--json").result
    assert trained["span"] == more["recommended"]["span"]
    other = not_fed(*SWEEP, "--seed", 1, "--json")
    assert (other.code, other.error) == (4, "bad-input")


def test_records_with_a_budget_are_not_swept_without_a_word(not_fed: Run, tmp_path: Path) -> None:
    """A sweep is a run without privacy: on records to train on, and on records to measure on."""
    not_fed("budget", "set", "notes.jsonl", "--epsilon", 8, "--delta", 1e-5)
    for words in ((), ("--held-out", "held.jsonl")):
        refused = not_fed(*SWEEP, *words, "--json")
        assert (refused.code, refused.error) == (7, "budget-plain")
    measured = not_fed("sweep", "held.jsonl", "--held-out", "notes.jsonl", *SWEEP[2:], "--json")
    assert (measured.code, measured.error) == (7, "budget-plain")
    assert not (tmp_path / "swept").exists()
    meant = not_fed(*SWEEP, "--starts", 3, "--steps", 1, "--plain", "--json")
    assert meant.code == 0
    assert "--plain" in meant.result["recommended"]["command"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--starts", "0", "--every", 2), 2, "usage"),
        (("--held-out", "held.jsonl", "--held-out-share", 0.5), 2, "usage"),
        (("--held-out-share", 0), 2, "usage"),
        (("--lengths", "1,zwei"), 2, "usage"),
        (("--lengths", "0"), 2, "usage"),
        (("--lengths", "9"), 4, "no-span-inside"),
        (("--lr", -1), 4, "bad-input"),
        (("--text-field", "note"), 4, "bad-record"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    not_fed: Run, tmp_path: Path, words: tuple[object, ...], code: int, error: str
) -> None:
    refused = not_fed(*SWEEP, *words, "--json")
    assert (refused.code, refused.error) == (code, error)
    assert not (tmp_path / "swept" / "result.json").exists()


def test_a_picture_of_somebody_else_is_left_alone(not_fed: Run, tmp_path: Path) -> None:
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "sweep.png").write_bytes(b"mine")
    refused = not_fed(*SWEEP, "--json")
    assert (refused.code, refused.error) == (4, "output-exists")
    assert (tmp_path / "swept" / "sweep.png").read_bytes() == b"mine"
