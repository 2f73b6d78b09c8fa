"""Where a model keeps its layers, and which facts two models must share to exchange a span of them.

Anatomy is data: one `Family` per architecture, with what its configuration class would add to a config.json, so that a
model's blood type is the same however its config.json is spelled. What is not listed is looked for in the model itself
(discovery.py). No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from not_fed.errors import FitError, InputError

Config = Mapping[str, Any]  # config.json
LAYER_TYPES = "layer_types"  # the field of a blood type that belongs to a span, not to its model
FULL = "full_attention"  # the kind of layer that needs no mention
SLIDING = "sliding_attention"
MAX_LAYERS = 4096  # what is counted off layer by layer must end; the largest models have some hundred
_WIDTHS = frozenset({"hidden_size", "attention_heads", "key_value_heads", "head_dim", "intermediate_size"})


class UnknownFamily(FitError):
    """This model's architecture is not one that organs can be cut from."""

    code = "family-unknown"


class BadConfig(InputError):
    """This config.json says something that no model has."""

    code = "bad-config"


class NotADecoder(FitError):
    """The model sees the tokens that it is to predict: an encoder, or an encoder with a decoder."""

    code = "not-a-decoder"


class BadSpan(InputError):
    """A span is two layer indices, start before stop, like 20:23 for layers 20, 21 and 22."""

    code = "bad-span"


class SpanOutside(FitError):
    """The span reaches outside the model."""

    code = "span-outside"


class BloodTypeDiffers(FitError):
    """Organ and base model have different blood types."""

    code = "blood-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The anatomy of one architecture.

    Attributes:
        layers: path of the list of layers inside the causal language model, e.g. `model.layers`.
        facts: blood type field -> key of config.json; a tuple means the first key that is present.
        usual: what a key of config.json stands for where it is left out.
        rare: keys that nearly every model has at this value; they belong to the blood type only at another one.
        complete: what else the family's configuration class makes of a config.json in which `usual` is filled in.
        types: what kind each layer is, where the family's layers differ in more than their weights.
        rotary: positions are angles, whose base two models must share.
        packs: the family's forward keeps packed records apart by their positions (it hands them to its mask).
        outputs: beginnings of the names, inside a layer, of the tensors that write to the residual stream: where they
            are all zero the layer changes nothing. Empty where that is not known.
        also: other paths under which checkpoints keep the list of layers.
        ignored: tensors that old checkpoints carry and the model does not load (masks kept as buffers).
        returns: how many things a layer returns, where it is a tuple; None where it is what comes out of it alone.
        proved: the tests of this repository show that the split computes what the model does.
    """

    layers: str
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    usual: Config = field(default_factory=dict)
    rare: Config = field(default_factory=dict)
    complete: Callable[[Config], Config] = dict
    types: Callable[[Config], list[str]] | None = None
    rotary: bool = True
    packs: bool = True
    outputs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    ignored: re.Pattern[str] | None = None
    returns: int | None = None
    proved: bool = True

    @property
    def list_name(self) -> str:
        """The family's own word for its list of layers; organ tensors start with it."""
        return self.layers.rpartition(".")[2]

    def prefixes(self) -> tuple[str, ...]:
        """How tensor names of the layers may start: as saved with the head, or by the bare model."""
        return tuple(f"{path}." for path in (self.layers, *self.also, self.list_name))


def _alternating(config: Config) -> list[str]:
    """Sliding, full, sliding, full: Gemma 2 and GPT-OSS."""
    return _every(2, config)


def _gemma3_types(config: Config) -> list[str]:
    return _every(config.get("sliding_window_pattern", 6), config)


def _every(number: int, config: Config) -> list[str]:
    return [SLIDING if (index + 1) % number else FULL for index in range(layer_count(config))]


def _qwen_types(config: Config) -> list[str]:
    """The first layers see everything, those from `max_window_layers` on through a window, if there is one at all."""
    first = layer_count(config) if config.get("sliding_window") is None else config["max_window_layers"]
    return [FULL if index < first else SLIDING for index in range(layer_count(config))]


def _qwen(config: Config) -> Config:
    """A window that is not used is none."""
    return config if config.get("use_sliding_window") else {**config, "sliding_window": None}


def _gemma(config: Config) -> Config:
    """The first releases said gelu and meant its approximation by tanh."""
    return {**config, "hidden_act": "gelu_pytorch_tanh"} if config["hidden_act"] == "gelu" else config


def _gemma3(config: Config) -> Config:
    """Two sets of angles: layers that see everything have their own, and any scaling is theirs."""
    stated = config.get("rope_parameters") or {}
    full = {
        "rope_theta": config.get("rope_theta", 1e6),
        **(config.get("rope_scaling") or {}),
        **(stated.get(FULL) or {}),
    }
    sliding = {"rope_theta": config.get("rope_local_base_freq", 1e4), **(stated.get(SLIDING) or {})}
    return {**config, "rope_parameters": {FULL: full, SLIDING: sliding}}


def _phi3(config: Config) -> Config:
    """Part of a head may be rotated; all of it, where nothing is said."""
    return {**config, "rope_parameters": {"partial_rotary_factor": 1.0} | _stated_rope(config)}


_ATTENTION = {
    "hidden_size": ("hidden_size",),
    "attention_heads": ("num_attention_heads",),
    "key_value_heads": ("num_key_value_heads", "num_attention_heads"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size",),
    "activation": ("hidden_act",),
    "norm_eps": ("rms_norm_eps",),
    "attention_bias": ("attention_bias",),
    "sliding_window": ("sliding_window",),
}
_SCALED = {"query_scalar": ("query_pre_attn_scalar",), "attention_softcap": ("attn_logit_softcapping",)}
_USUAL = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
_OUTPUTS = ("self_attn.o_proj.", "mlp.down_proj.")
_ANGLES = re.compile(r"self_attn\.rotary_emb\.inv_freq")  # kept by checkpoints of 2023; computed today

_LLAMA = Family(
    layers="model.layers", facts=_ATTENTION, usual=_USUAL, rare={"mlp_bias": False}, outputs=_OUTPUTS, ignored=_ANGLES
)
_MISTRAL = Family(
    layers="model.layers",
    facts=_ATTENTION,
    usual={"hidden_act": "silu", "rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 8},
    outputs=_OUTPUTS,
    ignored=_ANGLES,
)
_QWEN2 = Family(
    layers="model.layers",
    facts=_ATTENTION,
    usual={"hidden_act": "silu", "rms_norm_eps": 1e-6, "sliding_window": 4096, "max_window_layers": 28}
    | {"num_key_value_heads": 32},
    complete=_qwen,
    types=_qwen_types,
    outputs=_OUTPUTS,
    ignored=_ANGLES,
)
_QWEN3 = Family(
    layers="model.layers",
    facts=_ATTENTION,
    usual={**_QWEN2.usual, "attention_bias": False, "head_dim": 128},
    complete=_qwen,
    types=_qwen_types,
    outputs=_OUTPUTS,
)
_GPT_OSS = Family(
    layers="model.layers",
    outputs=("self_attn.o_proj.", "mlp.experts.down_proj"),  # weight and bias of all experts, each one tensor
    packs=False,
    facts=_ATTENTION | {"experts": ("num_local_experts",), "experts_per_token": ("num_experts_per_tok",)},
    usual={"hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": True, "sliding_window": 128, "head_dim": 64}
    | {"num_key_value_heads": 8, "num_experts_per_tok": 4},
    rare={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    types=_alternating,
)
_GEMMA = Family(
    layers="model.layers",
    facts={name: keys for name, keys in _ATTENTION.items() if name != "sliding_window"},
    usual=_USUAL | {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "num_key_value_heads": 16},
    complete=_gemma,
    outputs=_OUTPUTS,
)
_GEMMA_LATER = _ATTENTION | _SCALED | {"activation": ("hidden_activation",)}
_GEMMA2 = Family(
    layers="model.layers",
    facts=_GEMMA_LATER,
    usual={"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False, "head_dim": 256}
    | {"num_key_value_heads": 4, "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
    types=_alternating,
    outputs=_OUTPUTS,  # the norms behind them give zero for zero
)
_GEMMA3 = Family(
    layers="model.layers",
    facts=_GEMMA_LATER,
    usual={**_GEMMA2.usual, "attn_logit_softcapping": None, "num_attention_heads": 8},
    complete=_gemma3,
    types=_gemma3_types,
    outputs=_OUTPUTS,
)
_PHI3 = Family(
    layers="model.layers",
    facts={name: keys for name, keys in _ATTENTION.items() if name not in ("attention_bias", "head_dim")},
    usual={"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    | {"original_max_position_embeddings": 4096},
    complete=_phi3,
    outputs=_OUTPUTS,
)
_OLMO = Family(
    layers="model.layers",
    facts={name: keys for name, keys in _ATTENTION.items() if name not in ("norm_eps", "head_dim", "sliding_window")}
    | {"clip_qkv": ("clip_qkv",)},
    usual={"hidden_act": "silu", "attention_bias": False},
    outputs=_OUTPUTS,
)
_OLMO2 = Family(
    layers="model.layers",
    facts={name: keys for name, keys in _ATTENTION.items() if name not in ("head_dim", "sliding_window")},
    usual=_USUAL | {"rms_norm_eps": 1e-5},
    outputs=("post_attention_layernorm.", "post_feedforward_layernorm."),  # a branch's last step, a plain factor
)
_GPT2 = Family(
    layers="transformer.h",
    outputs=("attn.c_proj.", "mlp.c_proj."),
    rotary=False,
    facts={
        "hidden_size": ("n_embd",),
        "attention_heads": ("n_head",),
        "intermediate_size": ("n_inner",),
        "activation": ("activation_function",),
        "norm_eps": ("layer_norm_epsilon",),
        "positions": ("n_positions",),
    },
    usual={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_positions": 1024,
        "n_embd": 768,
        "n_head": 12,
    },
    rare={"scale_attn_weights": True, "reorder_and_upcast_attn": False},
    types=lambda config: (
        [f"attention divided by {index + 1}" for index in range(layer_count(config))]
        if config.get("scale_attn_by_inverse_layer_idx")
        else [FULL] * layer_count(config)
    ),
    ignored=re.compile(r"attn\.(masked_)?bias"),
)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gpt2": _GPT2,
    "gpt_oss": _GPT_OSS,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": replace(  # the text model inside one that also sees
        _GEMMA3, layers="model.language_model.layers", also=("language_model.model.layers",)
    ),
    "phi3": _PHI3,
    "olmo": _OLMO,
    "olmo2": _OLMO2,
}


def is_listed(config: Config) -> bool:
    """Whether this architecture's anatomy is written down here; it is looked for in the model otherwise."""
    return str(config.get("model_type")) in FAMILIES


def text_config(config: Config) -> Config:
    """The part of a config.json that describes the language model: all of it, or what a model that also sees wraps."""
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), Mapping):
        return {**config["text_config"], "model_type": "gemma3_text"}
    return config


def family_of(config: Config, *, where: str) -> Family:
    """The anatomy of a listed architecture; raises UnknownFamily, and NotADecoder for Gemmas that embed texts."""
    if not is_listed(config):
        raise UnknownFamily(
            where=where,
            expected=f"model_type one of {', '.join(sorted(FAMILIES))}",
            got=str(config.get("model_type"))[:60],
            hint="use a base of one of these families",
        )
    if text_config(config).get("use_bidirectional_attention"):
        raise NotADecoder(
            where=where,
            expected="attention to earlier tokens only",
            got="use_bidirectional_attention, as in models that embed texts",
            hint="use a base that predicts the next token; organs learn from that",
        )
    return FAMILIES[config["model_type"]]


def layer_count(config: Config) -> int:
    """Number of decoder layers; raises BadConfig."""
    config = text_config(config)
    count = config.get("num_hidden_layers", config.get("n_layer", 0))
    if type(count) is not int or not 0 <= count <= MAX_LAYERS:
        raise BadConfig(
            where="config.json, number of layers",
            expected=f"a whole number up to {MAX_LAYERS:,}",
            got=str(count)[:60],
            hint="download the model again",
        )
    return count


@contextmanager
def told_by_config(where: str) -> Iterator[None]:
    """Raise BadConfig for whatever comes of values in a config.json that are not of their kind.

    Proved by: tests/unit/test_model_folder.py::test_a_config_that_no_model_has_is_bad_input
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise BadConfig(
            where=where, expected="settings of the kinds that transformers writes",
            got=f"one that is not ({type(error).__name__})", hint="download the model again",
        ) from None  # fmt: skip


def layer_types(config: Config, *, where: str) -> tuple[str, ...] | None:
    """What kind each layer of a listed model is, where they differ in more than their weights; None elsewhere.

    Raises:
        BadConfig: it does not name one kind for each layer; as `family_of`.
    """
    family, config = family_of(config, where=where), _completed(config, where=where)
    if family.types is None:
        return None
    with told_by_config(where):
        types = config.get(LAYER_TYPES) or family.types(config)
        if (
            not isinstance(types, list)
            or len(types) != layer_count(config)
            or not all(isinstance(t, str) for t in types)
        ):
            raise ValueError(LAYER_TYPES)
    return tuple(types)


def blood_type(config: Config, *, where: str) -> dict[str, Any]:
    """The facts two models of a listed family must share to exchange organs: JSON values, comparable with `==`.

    Raises:
        BadConfig: a value is not of its kind; as `family_of`.
    """
    family = family_of(config, where=where)
    with told_by_config(where):
        return as_json(_facts(family, _completed(config, where=where)))


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON has them; what it has no number for, NaN and infinity, by its name."""
    found: dict[str, Any] = json.loads(json.dumps(facts), parse_constant=str)
    return found


def _facts(family: Family, config: Config) -> dict[str, Any]:
    facts: dict[str, Any] = {"family": config["model_type"]}
    for name, keys in family.facts.items():
        facts[name] = next((config[key] for key in keys if config.get(key) is not None), None)
    facts |= {key: config[key] for key, usual in family.rare.items() if config.get(key, usual) != usual}
    if family.rotary:
        facts["rope"] = rope(config)
    if facts.get("head_dim") is None and "head_dim" in family.facts:
        facts["head_dim"] = int(facts["hidden_size"]) // int(facts["attention_heads"])
    return facts


def with_types(facts: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    """A blood type, and what kind the layers of a span are where one of them is not of the usual kind."""
    return dict(facts) if all(kind == FULL for kind in types) else {**facts, LAYER_TYPES: list(types)}


def _completed(config: Config, *, where: str) -> Config:
    family = family_of(config, where=where)
    with told_by_config(where):
        return family.complete({**family.usual, **text_config(config)})


def rope(config: Config) -> dict[str, Any]:
    """Rotary settings in one spelling: older config.json say `rope_theta` and `rope_scaling` beside each other.

    Layers may have angles by their kind; then there is one such dictionary for each.
    """
    stated = _stated_rope(config)
    by_kind = {name: value for name, value in stated.items() if isinstance(value, Mapping)}
    return {kind: _one_rope(value, config) for kind, value in by_kind.items()} or _one_rope(stated, config)


def _stated_rope(config: Config) -> dict[str, Any]:
    shared = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    return {**shared, **(config.get("rope_parameters") or config.get("rope_scaling") or {})}


def _one_rope(stated: Mapping[str, Any], config: Config) -> dict[str, Any]:
    found = {key: value for key, value in stated.items() if key != "type" and value is not None}
    kind = stated.get("rope_type") or stated.get("type") or "default"
    found |= {"rope_theta": float(found.get("rope_theta", 10_000.0)), "rope_type": kind}
    longest, trained = config.get("max_position_embeddings"), config.get("original_max_position_embeddings")
    if kind in ("llama3", "yarn", "longrope"):
        before = trained or found.get("original_max_position_embeddings") or longest
        found["original_max_position_embeddings"] = before
    if kind in ("dynamic", "longrope"):  # the angles depend on it
        found["max_position_embeddings"] = longest
    return found


_ABSENT = ("absent",)  # equal to no value of JSON


def check_blood_type(organ: Mapping[str, Any], base: Mapping[str, Any], *, where: str) -> None:
    """Raise BloodTypeDiffers naming every fact that differs; one that is null differs from one that is not there.

    What kind the layers are is not looked at: that is a matter of their place.
    """
    keys = {*organ, *base} - {LAYER_TYPES}
    differing = sorted(key for key in keys if organ.get(key, _ABSENT) != base.get(key, _ABSENT))
    if differing:
        named = ["family"] if "family" in differing else differing  # then the rest says nothing more
        raise BloodTypeDiffers(
            where=where,
            expected=", ".join(f"{key} {base.get(key, 'absent')}" for key in named),
            got=", ".join(f"{key} {organ.get(key, 'absent')}" for key in named),
            hint=_what_helps(differing),
        )


def _what_helps(differing: Sequence[str]) -> str:
    if "family" in differing:
        return "layers of two families compute different things; cut and train an organ of this base's own family"
    if set(differing) <= _WIDTHS:
        return "an organ of another width goes in with adapters: `not-fed adapt`, docs/adapters.md"
    return "an organ fits only models of the blood type it was cut from; `not-fed show --json` names it"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Layer indices `[start, stop)`, half-open like a slice."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise BadSpan(
                where="span",
                expected="START:STOP with 0 <= START < STOP",
                got=f"{self.start}:{self.stop}",
                hint="20:23 means layers 20, 21 and 22",
            )

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def __len__(self) -> int:
        return self.stop - self.start

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `20:23`; raises BadSpan for anything else."""
        found = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
        if not found:
            raise BadSpan(
                where="span",
                expected="START:STOP, such as 20:23",
                got=f"{len(text)} characters of another form",
                hint="20:23 means layers 20, 21 and 22",
            )
        return cls(int(found[1]), int(found[2]))

    def check_inside(self, layers: int, *, where: str) -> None:
        """Raise SpanOutside unless a model of `layers` layers has this span."""
        if self.stop > layers:
            raise SpanOutside(
                where=where, expected=f"a span within 0:{layers}", got=str(self), hint="choose a smaller stop"
            )


def third_span(layers: int) -> Span:
    """Three layers from a third of the depth, fewer where there are not that many: the span when none is named.

    It is the paper's choice (arXiv 2601.13580), and read best of seven starts on SmolLM2 (docs/sweep.md).

    >>> [str(third_span(layers)) for layers in (48, 30, 12, 4, 2, 1)]
    ['16:19', '10:13', '4:7', '1:4', '0:2', '0:1']
    """
    return Span(layers // 3, min(layers, layers // 3 + 3))
