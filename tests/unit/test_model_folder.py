"""A model's folder comes from strangers: what its config.json, its index and its tokenizer may not do."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from not_fed.organ.anatomy import MAX_LAYERS, BadConfig, Span, UnknownFamily
from not_fed.organ.checkpoint import Base, NotABase, open_base
from not_fed.organ.extract import extract
from not_fed.organ.split import NoTokenizer, load_tokenizer
from tests.support import tiny
from tests.support.folders import save_base

SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path / "base", max_shard_size="20KB")


def say(folder: Path, **settings: object) -> None:
    """Put settings into a config.json."""
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))


def weight_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": "four"},
        {"num_hidden_layers": None},
        {"num_hidden_layers": MAX_LAYERS + 1},
        {"num_hidden_layers": float("inf")},
        {"head_dim": None, "num_attention_heads": 0},
        {"rope_parameters": ["x"]},
        {"rope_parameters": {"rope_theta": "x"}},
        {"model_type": "gemma2", "num_hidden_layers": 10**9},
        {"model_type": "gemma2", "layer_types": ["sliding_attention"]},
        {"model_type": "gemma2", "layer_types": ["sliding_attention"] * 5},
        {"model_type": "gemma2", "layer_types": "sliding"},
        {"model_type": "gemma2", "layer_types": [{}] * 4},
        {"model_type": "gemma3_text", "sliding_window_pattern": 0},
        {"model_type": "starcoder2", "num_hidden_layers": 10**9},
    ],
)
def test_a_config_that_no_model_has_is_bad_input(settings: Mapping[str, Any], base: Base, tmp_path: Path) -> None:
    say(base.folder, **settings)
    with pytest.raises(BadConfig):
        extract(open_base(base.folder), span=Span(1, 3), out=tmp_path / "organ")


def test_a_model_type_that_is_no_name_is_no_family(base: Base) -> None:
    say(base.folder, model_type=["llama"])
    with pytest.raises(UnknownFamily):
        _ = open_base(base.folder).layers


def test_a_number_that_json_has_not_is_told_by_its_name(base: Base, tmp_path: Path) -> None:
    """Real ones say so of a limit: `"time_step_limit": [0.0, Infinity]`."""
    say(base.folder, rms_norm_eps=float("inf"))
    organ = extract(open_base(base.folder), span=Span(1, 3), out=tmp_path / "organ")
    assert organ.manifest.blood_type["norm_eps"] == "Infinity"


def also_the_whole(folder: Path) -> None:
    save_file(load_file(folder / weight_map(folder)[NAME]), folder / SHARD, {"format": "pt"})


def a_tensor_twice(folder: Path) -> None:
    last = folder / max(weight_map(folder).values())
    tensors = load_file(folder / weight_map(folder)[NAME])
    save_file({**load_file(last), NAME: tensors[NAME] + 1}, last, {"format": "pt"})


def a_tensor_that_the_index_keeps_quiet(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][NAME]
    (folder / INDEX).write_text(json.dumps(index))


def other_weights(folder: Path) -> None:
    shutil.copyfile(folder / weight_map(folder)[NAME], folder / "other.safetensors")
    say(folder, transformers_weights="other.safetensors")


def another_config(folder: Path) -> None:
    shutil.copyfile(folder / "config.json", folder / "config.4.0.0.json")
    say(folder, configuration_files=["config.4.0.0.json"])


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def attention_from_the_hub(folder: Path) -> None:
    say(folder, attn_implementation="somebody/attention")


@pytest.mark.parametrize(
    "harm",
    [
        also_the_whole, a_tensor_twice, a_tensor_that_the_index_keeps_quiet, other_weights, another_config, an_adapter,
        attention_from_the_hub,
    ],
)  # fmt: skip
def test_a_folder_that_transformers_reads_otherwise_is_no_base(harm: Callable[[Path], None], base: Base) -> None:
    """Its digest would be of one model, and what is trained, measured and used another."""
    harm(base.folder)
    with pytest.raises(NotABase):
        open_base(base.folder)


def test_code_that_comes_with_a_tokenizer_is_never_run(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where somebody would have said yes: transformers asks on the terminal."""
    (base.folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass T: pass\n")
    settings = base.folder / "tokenizer_config.json"
    theirs = {"auto_map": {"AutoTokenizer": ["theirs.T", "theirs.T"]}, "tokenizer_class": "T"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **theirs}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(NoTokenizer):
        load_tokenizer(base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "x" * 5000},
        {"hidden_act": "\ud800"},
        {"rope_parameters": {"factor": 10**30}},
        {"model_type": "starcoder2", "more": {str(number): number for number in range(600)}},
    ],
)
def test_settings_that_no_header_holds_are_refused_before_writing(
    settings: Mapping[str, Any], base: Base, tmp_path: Path
) -> None:
    """An organ that nobody could read again."""
    say(base.folder, **settings)
    with pytest.raises(BadConfig):
        extract(open_base(base.folder), span=Span(1, 3), out=tmp_path / "organ")
    assert not (tmp_path / "organ").exists()


@pytest.mark.parametrize("name", ["layers.1.self_attn.q_proj.weight", "model.layers.01.self_attn.q_proj.weight"])
def test_a_layer_under_two_names_is_no_base(name: str, tmp_path: Path) -> None:
    """An organ would go into one of them, and transformers load the other."""
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    tensors = load_file(base.folder / SHARD)
    save_file({**tensors, name: tensors[NAME] * 2}, base.folder / SHARD, {"format": "pt"})
    with pytest.raises(NotABase):
        extract(open_base(base.folder), span=Span(1, 3), out=tmp_path / "organ")
