"""Stand-alone training harms a model, recovery heals it, undo takes it all back: typed as a person would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from not_fed.organ.checkpoint import open_base
from tests.support import tiny
from tests.support.commands import Outcome, runner
from tests.support.folders import records, save_base

PAGE = Path(__file__).parents[2] / "docs" / "recovery.md"

Run = Callable[..., Outcome]


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `not-fed WORDS` in a folder with a base, private notes and public text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    save_base(tiny.tiny_llama(), tmp_path / "base")
    for name, texts in (("notes", records(60)), ("public", records(150, seed=2)), ("held", records(20, seed=9))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return runner(monkeypatch, capsys)


def perplexity(not_fed: Run, model: str) -> float:
    return float(not_fed("evaluate", model, "--data", "held.jsonl", "--json").result["perplexity"])


def test_a_span_trained_alone_is_put_in_healed_and_taken_back(not_fed: Run, tmp_path: Path) -> None:
    """Every command of docs/recovery.md, one after the other."""
    said = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("$ not-fed "):
            words = line.split()[2:]
            done = not_fed(*words, "--json")
            assert done.code == 0, done.err
            said[words[words.index("--out") + 1] if "--out" in words else words[0]] = done
    trained, dry, healed = said["alone.organ"], said["recover"].result, said["healed"].result
    assert trained.result["mode"] == "stand-alone"
    assert "ruins the model" in " ".join(trained.err.split())
    assert "stand-alone; no privacy claim" in not_fed("show", "alone.organ").out
    assert (dry["dry_run"], dry["before"]) == (True, None)
    assert healed["replaced"] == dry["replaced"]
    assert {name.split(".")[2] for name in healed["replaced"]} == {"0", "3"}
    assert healed["after"]["perplexity"] < healed["before"]["perplexity"]
    assert perplexity(not_fed, "healed") < perplexity(not_fed, "model")
    for out, before in (("model-before", "model"), ("base-before", "base")):
        assert said[out].result["base_sha256"] == open_base(tmp_path / before).sha256
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", local_files_only=True)
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)
    beside = ("train", "notes.jsonl", "--base", "base", "--span", "0:1", "--mode", "stand-alone", "--body")
    refused = not_fed(*beside, "alone.organ", "--out", "a.organ", "--json")
    assert (refused.code, refused.error) == (4, "body-beside-alone")


def test_layers_put_in_without_effect_learn_in_a_recovery(not_fed: Run, tmp_path: Path) -> None:
    not_fed("extract", "--base", "base", "--span", "2:3", "--out", "new.organ")
    not_fed("transplant", "new.organ", "--into", "base", "--mode", "insert", "--at", 3, "--out", "longer")
    assert perplexity(not_fed, "longer") == pytest.approx(perplexity(not_fed, "base"), rel=1e-4)
    words = ("recover", "longer", "--data", "public.jsonl", "--what", "organ", "--batch-tokens", 120, "--json")
    grown = not_fed(*words, "--out", "grown").result
    assert {name.split(".")[2] for name in grown["replaced"]} == {"3"}
    assert perplexity(not_fed, "grown") < perplexity(not_fed, "base")
    not_fed("undo", "grown", "--out", "back-1")
    not_fed("undo", "back-1", "--out", "back-2")
    assert open_base(tmp_path / "back-2").sha256 == open_base(tmp_path / "base").sha256


def test_records_that_have_a_budget_are_no_public_text(not_fed: Run, tmp_path: Path) -> None:
    not_fed("budget", "set", "public.jsonl", "--epsilon", 2, "--delta", 1e-4)
    refused = not_fed("recover", "base", "--data", "public.jsonl", "--out", "healed", "--json")
    assert (refused.code, refused.error) == (7, "budget-plain")
    assert not (tmp_path / "healed").exists()
    neither = not_fed("recover", "base", "--data", "held.jsonl", "--json")
    assert (neither.code, "--dry-run" in neither.err) == (2, True)
