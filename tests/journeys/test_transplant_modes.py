"""Each mode of transplant as typed, and what one does with the model after that: plain transformers, PEFT, undo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from not_fed.cli import main as command
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.extract import extract
from tests.support import tiny
from tests.support.folders import save_base
from tests.support.learnt import fine_tuned, learnt_organ

Run = Callable[..., tuple[int, dict[str, Any]]]
SPAN, IDS = Span(1, 3), torch.arange(5, 12)[None]
FAMILIES = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gpt_oss]
MODES = {
    "replace": ("--accept-different-base",),
    "delta": ("--base", "base", "--scale", "0.5"),
    "insert": ("--at", "2", "--accept-different-base"),
    "insert as it is": ("--at", "4", "--start", "organ", "--accept-different-base"),
}


@pytest.fixture
def not_fed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `not-fed WORDS --json` in tmp_path: the exit code, and the object that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["not-fed", *map(str, words), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            command.main()
        out, err = capsys.readouterr()
        code = int(done.value.code or 0)
        return code, json.loads(err.strip().rpartition("\n")[2] if code else out)

    return run


def lay_out(folder: Path, make: Callable[[], PreTrainedModel]) -> Base:
    """A base, a model that was fine-tuned from it, which is returned, and an organ that learnt on the base."""
    base = save_base(make(), folder / "base", max_shard_size="50KB")
    learnt_organ(base, SPAN, folder / "knee.organ")
    return fine_tuned(base, folder / "ours")


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT asks transformers by its old name
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sees GPT-2's transposed layers, and says so
@pytest.mark.parametrize("make", FAMILIES)
def test_a_model_of_each_mode_is_an_ordinary_model(
    make: Callable[[], PreTrainedModel], not_fed: Run, tmp_path: Path
) -> None:
    """Plain transformers loads it, it writes text, saves and loads again bit for bit, and takes an adapter of PEFT."""
    lay_out(tmp_path, make)
    for name, options in MODES.items():
        new, again, mode = tmp_path / name, tmp_path / f"{name}-again", name.partition(" ")[0]
        code, result = not_fed("transplant", "knee.organ", "--into", "ours", "--mode", mode, *options, "--out", new)
        assert code == 0, result
        weights = {path.suffix for path in new.iterdir()} - {".json", ".jinja", ""}
        assert weights == {".safetensors"}, name
        model = AutoModelForCausalLM.from_pretrained(new)
        assert model.config.num_hidden_layers == result["layers"] == (6 if mode == "insert" else 4)
        assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, IDS.shape[1] + 3)
        model.save_pretrained(again)
        assert open_base(again).sha256 == open_base(new).sha256
        with_adapter = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        expected = logits(with_adapter)
        with_adapter.save_pretrained(tmp_path / f"{name}-lora")
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(again), tmp_path / f"{name}-lora")
        assert torch.equal(logits(loaded), expected)
        assert not torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), expected)  # control


def test_each_mode_is_undone_bit_for_bit(not_fed: Run, tmp_path: Path) -> None:
    ours = lay_out(tmp_path, tiny.tiny_llama)
    for name, options in MODES.items():
        mode, new, back = name.partition(" ")[0], tmp_path / name, tmp_path / f"{name}-back"
        not_fed("transplant", "knee.organ", "--into", "ours", "--mode", mode, *options, "--out", new)
        code, result = not_fed("undo", new, "--out", back)
        assert (code, result["base_sha256"]) == (0, ours.sha256)
        assert open_base(back).sha256 == ours.sha256
        assert (back / "config.json").read_bytes() == (ours.folder / "config.json").read_bytes()


def test_a_dry_run_says_everything_and_writes_nothing(not_fed: Run, tmp_path: Path) -> None:
    ours = lay_out(tmp_path, tiny.tiny_llama)
    before = {path.name for path in tmp_path.iterdir()} | {"cache"}
    tensors = sorted(ours.span_names(SPAN).values())
    common = ("transplant", "knee.organ", "--into", "ours", "--dry-run", "--mode")
    expected = {
        "replace": {"replaced": tensors, "inserted": [], "layers": 4, "at": [1, 3]},
        "delta": {"replaced": tensors, "scale": 0.5, "overlap": None, "at": [1, 3], "exact": False},
        "insert": {"replaced": [], "start": "zero", "layers": 6, "at": [2, 4]},
        "insert as it is": {"replaced": [], "start": "organ", "layers": 6, "at": [4, 6]},
    }
    for name, options in MODES.items():
        mode = name.partition(" ")[0]
        code, result = not_fed(*common, mode, *options)
        assert (code, result["schema"]) == (0, "not-fed/transplanted/1")
        assert result.items() >= (expected[name] | {"mode": mode, "dry_run": True, "out": None}).items()
    assert {path.name for path in tmp_path.iterdir()} <= before


def test_what_does_not_belong_together_is_refused_and_writes_nothing(not_fed: Run, tmp_path: Path) -> None:
    lay_out(tmp_path, tiny.tiny_llama)
    save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    learnt_organ(open_base(tmp_path / "base"), Span(2, 4), tmp_path / "wide.organ")
    extract(open_base(tmp_path / "base"), span=SPAN, out=tmp_path / "untouched.organ")
    save_base(tiny.tiny_gpt2(), tmp_path / "gpt2")
    delta = ("--mode", "delta", "--base", "base")
    for words, expected in {
        ("knee.organ", "--into", "ours", "--mode", "delta"): (2, "usage"),
        ("knee.organ", "--into", "ours", "--base", "base"): (2, "usage"),
        ("knee.organ", "--into", "ours", "--scale", "2"): (2, "usage"),
        ("knee.organ", "--into", "ours", "--overlap", "ties", "--mode", "insert"): (2, "usage"),
        ("knee.organ", "--into", "ours", "--start", "zero", *delta): (2, "usage"),
        ("knee.organ", "--into", "ours", "--accept-different-base", *delta): (2, "usage"),
        ("knee.organ", "wide.organ", "--into", "ours", "--at", "1", "--mode", "insert"): (2, "usage"),
        ("knee.organ", "--into", "ours", "--scale", "nan", *delta): (4, "bad-scale"),
        ("knee.organ", "--into", "ours", "--mode", "delta", "--base", "other"): (5, "other-base"),
        ("knee.organ", "--into", "gpt2", *delta): (5, "blood-type"),
        ("knee.organ", "--into", "gpt2", "--mode", "insert"): (5, "blood-type"),
        ("knee.organ", "--into", "other", "--mode", "insert"): (5, "other-base"),
        ("untouched.organ", "--into", "ours", *delta): (5, "nothing-learned"),
        ("knee.organ", "wide.organ", "--into", "ours", *delta): (5, "spans-overlap"),
        ("knee.organ", "wide.organ", "--into", "base", "--mode", "insert"): (5, "spans-overlap"),
    }.items():
        code, error = not_fed("transplant", *words, "--out", "never")
        assert (code, error["code"]) == expected, words
        assert error["hint"]
        assert not (tmp_path / "never").exists()
    code, result = not_fed("transplant", "knee.organ", "wide.organ", "--into", "ours", *delta, "--overlap", "mean",
                           "--out", "both")  # fmt: skip
    assert (code, result["at"]) == (0, [[1, 3], [2, 4]])  # control
