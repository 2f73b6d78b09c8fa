"""`not-fed demo --quick`, as CI and a newcomer run it: the real model, real text, real processes' worth of work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import open_base
from not_fed.organ.data import read_records
from not_fed.organ.evaluate import Evaluator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    script = Path(sys.executable).with_name("not-fed")
    done = subprocess.run(
        [script, "demo", "--quick", "--out", out, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads((out / "result.json").read_text())
    return out


@pytest.fixture(scope="module")
def result(demo: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((demo / "result.json").read_text())
    return loaded


def test_the_aggregate_beats_the_base_and_every_single_sites_organ(result: dict[str, Any]) -> None:
    mean = {model: domains["mean"] for model, domains in result["perplexity"].items()}
    assert mean["non-private/aggregate"]["ci_high"] < mean["base"]["ci_low"]
    assert all(
        mean["non-private/aggregate"]["value"] < mean[f"non-private/{site}"]["value"] for site in result["sites"]
    )


def test_with_privacy_too_the_aggregate_beats_the_base(result: dict[str, Any]) -> None:
    assert result["perplexity"]["epsilon-8/aggregate"]["mean"]["value"] < result["perplexity"]["base"]["mean"]["value"]


def test_the_server_had_no_text_no_organ_and_no_key(result: dict[str, Any]) -> None:
    check = result["plaintext_check"]
    assert check["found"] == []
    assert check["planted_found"] is True
    assert min(check["texts"], check["tensors"], check["keys"]) > 0
    assert check["bytes_searched"] > sum(kind["bytes"] for kind in result["server_saw"].values())


def test_altered_organs_and_second_questions_were_refused(result: dict[str, Any]) -> None:
    assert len(result["refused"]) >= 6
    codes = [(attempt["code"], attempt["exit_code"]) for attempt in result["refused"]]
    assert {code for _, code in codes[:4]} == {6}
    assert [code for code, _ in codes[4:]] == ["sum-key-gone", "bad-sum-paper"]


def test_the_server_held_masked_changes_and_their_sum(result: dict[str, Any]) -> None:
    for run in result["runs"]:
        held = {row["what"]: row["count"] for row in run["held"] if row["round"] == 1}
        assert held["masked changes"] == held["signed uploads"] == held["signed votes"] == 3
        assert held["helpers' sums of masks"] == 2
        assert [one["site"] for one in run["passports"][0]["contributors"]] == result["sites"]


def test_each_private_aggregate_claims_what_was_planned(result: dict[str, Any]) -> None:
    private = [passport for run in result["runs"] for passport in run["passports"] if run["epsilon"] is not None]
    assert private
    assert all(7.5 < passport["epsilon"] <= 8 for passport in private)
    assert all(len(passport["verified_by"]) == 3 for passport in private)


def test_what_comes_out_is_an_ordinary_model_that_reads_as_well_as_measured(demo: Path, result: dict[str, Any]) -> None:
    """Loaded by transformers alone; its perplexity is the one that the report states."""
    run = result["runs"][0]["name"]
    folder, site = demo / f"model-{run}", result["sites"][0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("The heart is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape[1] == tokens.shape[1] + 3
    held_out = read_records(demo / run / "sites" / site / "held_out.jsonl")
    measured = Evaluator(open_base(folder), records=held_out, span=Span(*result["span"])).perplexity()
    assert measured.value == pytest.approx(result["perplexity"][f"{run}/aggregate"][site]["value"], rel=1e-4)


def test_the_report_opens_without_network(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "<svg" in page
    assert not any(mark in page for mark in ('src="http', 'href="http', "@import", "url(http"))


def test_nothing_keeps_running(demo: Path) -> None:
    commands = [folder / "cmdline" for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    running = [path.read_bytes() for path in commands if path.exists()]
    assert not any(str(demo).encode() in command for command in running)
