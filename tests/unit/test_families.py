"""What is written down about each family: blood types, kinds of layers, sizes; and models that are not listed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from not_fed.errors import FitError
from not_fed.organ import split as split_module
from not_fed.organ.anatomy import (
    FAMILIES,
    BloodTypeDiffers,
    NotADecoder,
    Span,
    SpanOutside,
    UnknownFamily,
    blood_type,
    layer_types,
)
from not_fed.organ.checkpoint import Base, Place, open_base
from not_fed.organ.extract import extract
from not_fed.organ.fit import LayerTypesDiffer, OtherBase, ShapeDiffers, check_fit
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.split import StoredOtherwise, load_split
from not_fed.organ.split_check import CannotSplit, SplitDiffers, check_split
from not_fed.organ.train import TrainSettings, train
from not_fed.organ.transplant import apply_transplant, plan_transplant
from tests.support import tiny
from tests.support.folders import records, save_base
from tests.support.tiny import filled

SPAN = Span(1, 3)
MODELS = {
    "gemma": tiny.tiny_gemma, "gemma2": tiny.tiny_gemma2, "gemma3_text": tiny.tiny_gemma3, "phi3": tiny.tiny_phi3,
    "olmo": tiny.tiny_olmo, "olmo2": tiny.tiny_olmo2, "llama": tiny.tiny_llama, "mistral": tiny.tiny_mistral,
    "qwen2": tiny.tiny_qwen2, "qwen3": tiny.tiny_qwen3, "gpt_oss": tiny.tiny_gpt_oss, "gpt2": tiny.tiny_gpt2,
}  # fmt: skip


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """As `save_pretrained` would write it."""
    found: dict[str, Any] = json.loads(model.config.to_json_string())
    return found


# blood types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_blood_type_does_not_depend_on_what_config_json_leaves_out(name: str) -> None:
    """What the configuration class fills in is written down with the family."""
    full = config_of(MODELS[name]())
    usual = json.loads(CONFIG_MAPPING[name]().to_json_string())
    short = {key: value for key, value in full.items() if key == "model_type" or usual.get(key) != value}
    assert len(short) < len(full) - 5
    if "rope_parameters" in full:
        short["rope_parameters"] = full["rope_parameters"]
    assert blood_type(short, where="short") == blood_type(full, where="full")
    assert layer_types(short, where="short") == layer_types(full, where="full")


SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SPELLED_AS_ON_THE_HUB: Mapping[str, dict[str, Any]] = {
    "gemma": {"hidden_act": "gelu", "num_hidden_layers": 2, "rope_theta": 10000.0, "head_dim": 8},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh", "num_hidden_layers": 3, "sliding_window_size": 4096},
    "gemma3_text": {
        "num_hidden_layers": 8, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "phi3": {
        "num_hidden_layers": 2, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0]},
    },
    "qwen2": {"num_hidden_layers": 3, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 2},
    "qwen3": {"num_hidden_layers": 3, "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
    "llama": {
        "num_hidden_layers": 2, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLED_AS_ON_THE_HUB)
def test_a_blood_type_is_the_same_in_an_older_spelling(name: str) -> None:
    old = {"model_type": name, **SIZES, **SPELLED_AS_ON_THE_HUB[name]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = json.loads(CONFIG_MAPPING[name].from_dict(dict(old)).to_json_string())
    assert blood_type(old, where="old") == blood_type(new, where="new")
    assert layer_types(old, where="old") == layer_types(new, where="new")


MATTERS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"query_pre_attn_scalar": 13}), ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 5}),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_theta": 9e3}}}), ("olmo", {"clip_qkv": 8.0}),
    ("phi3", {"partial_rotary_factor": 0.25, "rope_parameters": None}), ("llama", {"mlp_bias": True}),
    ("gpt_oss", {"swiglu_limit": 6.0}), ("gpt2", {"scale_attn_weights": False}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), MATTERS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_layer_computes_with_belongs_to_the_blood_type(name: str, change: dict[str, Any]) -> None:
    config = config_of(MODELS[name]())
    assert blood_type(config | change, where="") != blood_type(config, where="")
    assert blood_type(config | {"vocab_size": 7, "dtype": "bfloat16"}, where="") == blood_type(config, where="")


def test_a_text_model_and_one_that_sees_share_a_blood_type() -> None:
    text, sees = (config_of(make()) for make in (tiny.tiny_gemma3, tiny.tiny_gemma3_with_vision))
    assert blood_type(text, where="") == blood_type(sees, where="")
    assert layer_types(text, where="") == layer_types(sees, where="") == ("sliding_attention",) * 2 + (
        "full_attention", "sliding_attention",
    )  # fmt: skip


def test_a_gemma_that_embeds_texts_is_no_decoder() -> None:
    config = config_of(tiny.tiny_gemma3()) | {"use_bidirectional_attention": True}
    with pytest.raises(NotADecoder, match="use_bidirectional_attention"):
        blood_type(config, where="config.json")


# published models, by their own numbers -----------------------------------------------------------------------------

GPT2 = {
    "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
TINY_LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS_20B = {
    "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
    "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "attention_bias": True, "swiglu_limit": 7.0,
    "rope_theta": 150000, "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}  # fmt: skip
PUBLISHED: list[tuple[dict[str, Any], Span, str, int, str, set[str]]] = [
    # the paper's three layers: bytes, and its own rounded figure
    (GPT2, Span(4, 7), "float32", 85_054_464, "81 MiB",
     {"ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
      "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"}),
    (TINY_LLAMA, Span(7, 10), "float16", 264_265_728, "252 MiB",
     {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
      "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight",
      "post_attention_layernorm.weight"}),
    (GPT_OSS_20B, Span(8, 11), "bfloat16", 4_939_121_856, "4.6 GiB",
     {*(f"self_attn.{part}_proj.{what}" for part in "qkvo" for what in ("weight", "bias")), "self_attn.sinks",
      "mlp.router.weight", "mlp.router.bias", "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias",
      "mlp.experts.down_proj", "mlp.experts.down_proj_bias", "input_layernorm.weight",
      "post_attention_layernorm.weight"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "span", "dtype", "size_bytes", "rounded", "tensors"), PUBLISHED, ids=["gpt2", "tinyllama", "gpt-oss-20b"]
)
def test_organs_of_published_models_have_the_papers_sizes(
    config: dict[str, Any], span: Span, dtype: str, size_bytes: int, rounded: str, tensors: set[str]
) -> None:
    with torch.device("meta"):
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype))
    base = Base(folder=Path("published"), config=config, places=dict(_places(model)))
    assert base.layers == len(model.get_submodule(base.family.layers))
    places = base.span_places(span)
    assert set(places) == {f"{base.family.list_name}.{layer}.{name}" for layer in range(3) for name in tensors}
    assert sum(place.end - place.begin for place in places.values()) == size_bytes
    number, unit = rounded.split()
    assert f"{size_bytes / {'MiB': 2**20, 'GiB': 2**30}[unit]:.{1 if '.' in number else 0}f}" == number


def _places(model: torch.nn.Module) -> Any:  # noqa: ANN401  pairs
    for name, weight in model.named_parameters():
        yield name, Place(Path("published"), "F32", tuple(weight.shape), 0, weight.numel() * weight.element_size())


# every family, from the cut to the transplant -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [tiny.tiny_gemma2, tiny.tiny_gemma3_with_vision, tiny.tiny_phi3, tiny.tiny_olmo],
    ids=lambda make: make.__name__,
)
def test_an_organ_is_cut_trained_and_transplanted(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    base = save_base(make(), tmp_path / "base")
    cut = extract(base, span=SPAN, out=tmp_path / "cut.organ")
    assert check_fit(cut, base=base).exact
    settings = TrainSettings(span=SPAN, lr=5e-3, epochs=1, batch_tokens=60)
    trained = train(base, records=records(6), settings=settings, out=tmp_path / "trained.organ").organ
    assert trained.manifest.blood_type == cut.manifest.blood_type
    new = apply_transplant(plan_transplant(organ=trained, base=base), out=tmp_path / "new")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base.folder, new))
    changed = {name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))}
    assert changed
    assert all(".".join(name.split(".")[:-2]).startswith(base.family.layers) for name in changed)
    assert {name.removeprefix(f"{base.family.layers}.").split(".")[0] for name in changed} == {"1", "2"}


# where an organ fits, and what a refusal says -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Sliding, full, sliding, full."""
    return save_base(tiny.tiny_gemma2(), tmp_path_factory.mktemp("gemma") / "base")


def test_an_organ_fits_only_where_layers_are_of_its_own_kinds(gemma: Base, tmp_path: Path) -> None:
    two = extract(gemma, span=Span(0, 2), out=tmp_path / "two.organ")
    assert two.manifest.blood_type["layer_types"] == ["sliding_attention", "full_attention"]
    assert check_fit(two, base=gemma).exact
    assert check_fit(two, base=gemma, at=2, accept_different_base=True).at == Span(2, 4)
    with pytest.raises(LayerTypesDiffer, match="expected full_attention, sliding_attention") as refused:
        check_fit(two, base=gemma, at=1, accept_different_base=True)
    assert refused.value.hint == "it would fit with --at 0 or 2"
    with pytest.raises(SpanOutside) as outside:
        check_fit(two, base=gemma, at=3, accept_different_base=True)
    assert outside.value.hint == "it would fit with --at 0 or 2"
    full = extract(gemma, span=Span(1, 2), out=tmp_path / "full.organ")
    assert "layer_types" not in full.manifest.blood_type  # the usual kind needs no mention
    assert check_fit(full, base=gemma, at=3, accept_different_base=True).at == Span(3, 4)
    with pytest.raises(LayerTypesDiffer, match="full_attention alone"):
        check_fit(full, base=gemma, at=0, accept_different_base=True)


def rewritten(organ: OrganInfo, out: Path, **blood: Any) -> OrganInfo:  # noqa: ANN401  JSON values
    """A copy of an organ whose blood type says something else; None leaves a fact out."""
    manifest = json.loads(organ.manifest.as_metadata()["not-fed"])
    manifest["blood_type"] = {k: v for k, v in {**manifest["blood_type"], **blood}.items() if v is not None}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    tensors = {name: torch.zeros(place.shape) for name, place in organ.places.items()}
    save_file(tensors, out, metadata={"not-fed": text})
    return read_organ(out)


def test_an_organ_that_does_not_say_its_kinds_is_read_but_fits_no_sliding_layer(gemma: Base, tmp_path: Path) -> None:
    organ = rewritten(extract(gemma, span=Span(0, 2), out=tmp_path / "a.organ"), tmp_path / "b.organ", layer_types=None)
    with pytest.raises(LayerTypesDiffer):
        check_fit(organ, base=gemma, accept_different_base=True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"family": "phi3"}, "own family"),
    ({"hidden_size": 64, "head_dim": 16}, "not-fed adapt"),
    ({"attention_softcap": 3.0}, "not-fed show"),
]


@pytest.mark.parametrize(("blood", "hint"), REFUSED, ids=["family", "width", "computation"])
def test_a_refusal_says_what_would_help(blood: dict[str, Any], hint: str, gemma: Base, tmp_path: Path) -> None:
    organ = rewritten(extract(gemma, span=Span(0, 2), out=tmp_path / "a.organ"), tmp_path / "b.organ", **blood)
    with pytest.raises(BloodTypeDiffers) as refused:
        check_fit(organ, base=gemma, accept_different_base=True)
    assert hint in refused.value.hint
    assert all(f"{name} {value}" in str(refused.value) for name, value in blood.items())


def test_another_base_and_another_number_format_are_refused_with_what_would_fit(gemma: Base, tmp_path: Path) -> None:
    other = save_base(tiny.tiny_gemma2(seed=1), tmp_path / "other")
    half = save_base(tiny.tiny_gemma2().bfloat16(), tmp_path / "half")
    organ = extract(gemma, span=Span(0, 2), out=tmp_path / "a.organ")
    with pytest.raises(OtherBase) as refused:
        check_fit(organ, base=other)
    assert "--mode delta" in refused.value.hint
    with pytest.raises(ShapeDiffers) as odd:
        check_fit(organ, base=half, accept_different_base=True)
    assert odd.value.hint == "save the base in F32, or cut the organ from it again"


# models that are not listed -----------------------------------------------------------------------------------------

_SIZES = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 128}
_OLD = {"vocab_size": 128, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 4}
_OLD |= {"bos_token_id": 1, "eos_token_id": 2}
UNLISTED: Mapping[str, tuple[dict[str, Any], str]] = {
    "gptj": (_OLD, "transformer.h"),  # a head with a bias
    "granite": ({**_SIZES, "logits_scaling": 4.0, "residual_multiplier": 0.5}, "model.layers"),
    "opt": ({**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, "model.decoder.layers"),  # positions from its mask
    "bloom": ({"vocab_size": 128, "hidden_size": 32, "n_layer": 4, "n_head": 4}, "transformer.h"),  # no positions
    "smollm3": (_SIZES, "model.layers"),
}


def unlisted(name: str, folder: Path, *, settings: Mapping[str, Any] | None = None, kind: Any = None) -> Base:  # noqa: ANN401
    """A tiny model of this architecture, saved."""
    config = CONFIG_MAPPING[name](**(settings or UNLISTED[name][0]))
    return save_base(filled(kind or type(_meta(config)), config), folder)


def _meta(config: Any) -> torch.nn.Module:  # noqa: ANN401  transformers' configurations have no common public type
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize("name", UNLISTED)
def test_a_family_that_is_not_listed_is_found_in_its_model(name: str, tmp_path: Path) -> None:
    base = unlisted(name, tmp_path / "base")
    assert name not in FAMILIES
    assert (base.family.layers, base.layers) == (UNLISTED[name][1], 4)
    cut = load_split(base, span=SPAN)  # checked against the model's own logits
    assert cut.parameters().keys() == base.span_names(SPAN).keys()


def test_an_organ_of_a_family_that_is_not_listed_learns_and_fits(tmp_path: Path) -> None:
    base = unlisted("smollm3", tmp_path / "base")
    settings = TrainSettings(span=SPAN, lr=5e-3, epochs=2, batch_tokens=60)
    organ = train(base, records=records(6), settings=settings, out=tmp_path / "o.organ").organ
    assert check_fit(organ, base=base).exact
    assert organ.manifest.blood_type["rope"] == {"rope_theta": 2e6, "rope_type": "default"}
    assert "vocab_size" not in organ.manifest.blood_type
    with pytest.raises(LayerTypesDiffer):  # the fourth layer has no angles
        check_fit(organ, base=base, at=2, accept_different_base=True)
    other = unlisted("smollm3", tmp_path / "other", settings={**_SIZES, "rms_norm_eps": 0.1})
    with pytest.raises(BloodTypeDiffers, match=r"rms_norm_eps 0\.1"):
        check_fit(organ, base=other, accept_different_base=True)


def test_a_cut_that_computes_something_else_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unlisted("granite", tmp_path / "base")
    monkeypatch.setattr(split_module, "_logit_scale", lambda _: 1.0)
    with pytest.raises(SplitDiffers, match=r"nats of difference, layers 1:3"):
        train(base, records=records(3), settings=TrainSettings(span=SPAN), out=tmp_path / "o.organ")
    assert not (tmp_path / "o.organ").exists()


def test_a_model_that_looks_ahead_is_refused_before_training() -> None:
    model = tiny.tiny_gemma3()
    model.config.use_bidirectional_attention = True
    with pytest.raises(NotADecoder, match="when a later token changes"):
        check_split(split_module.SplitModel(model, family=FAMILIES["gemma3_text"], span=SPAN), where="made up")


def test_a_model_that_does_not_run_with_layers_left_out_is_refused_by_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unlisted("granite", tmp_path / "base")

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(split_module._PassThrough, "forward", fails)
    with pytest.raises(
        CannotSplit, match="ZeroDivisionError, in GraniteForCausalLM with 4 layers: GraniteDecoderLayer"
    ):
        load_split(base, span=SPAN)


def test_weights_that_are_stored_otherwise_than_loaded_can_be_cut_but_not_trained(tmp_path: Path) -> None:
    """Mixtral's files hold each expert by itself; transformers loads all of a layer's as one tensor."""
    base = unlisted("mixtral", tmp_path / "base", settings={**_SIZES, "num_local_experts": 2})
    assert check_fit(extract(base, span=SPAN, out=tmp_path / "o.organ"), base=base).exact
    with pytest.raises(StoredOtherwise, match="experts"):
        load_split(base, span=SPAN)


NO_DECODERS: Mapping[str, tuple[dict[str, Any], type[FitError], str]] = {
    "bert": ({}, NotADecoder, "bert, an encoder"),
    "t5": ({}, NotADecoder, "t5, encoder and decoder"),
    "vit": ({}, NotADecoder, "vit, an encoder"),
    "made-up": ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, UnknownFamily, "got made-up"),
    "mpt": ({"n_layers": 0}, UnknownFamily, "one list of 0 layers"),
}


@pytest.mark.parametrize("name", NO_DECODERS)
def test_what_is_no_decoder_is_refused_saying_why(name: str, tmp_path: Path) -> None:
    settings, error, said = NO_DECODERS[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **settings}))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")  # code beside a checkpoint is never run
    save_file({"layers.0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(error, match=said):
        open_base(tmp_path).blood_type  # noqa: B018


def test_an_organs_header_is_read_without_torch(tmp_path: Path) -> None:
    organ = extract(unlisted("smollm3", tmp_path / "base"), span=SPAN, out=tmp_path / "o.organ")
    code = (
        "import sys; from pathlib import Path; from not_fed.organ.organ import read_organ;"
        "print(read_organ(Path(sys.argv[1])).family, {'torch', 'transformers'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code, organ.path], capture_output=True, text=True, check=True)
    assert said.stdout == "smollm3 set()\n"
