"""Where a model keeps its layers, and which facts two models must share to exchange a span of them.

Anatomy is data: one `Family` per architecture. A family that is not listed is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from not_fed.errors import FitError, InputError


class UnknownFamily(FitError):
    """This model's architecture is not one that organs can be cut from yet."""

    code = "family-unknown"


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
        rotary: positions are angles, whose base two models must share.
        packs: the family's forward keeps packed records apart by their positions (it hands them to its mask).
        outputs: beginnings of the names, inside a layer, of the tensors that write to the residual stream: where they
            are all zero the layer changes nothing. Empty where that is not known.
        ignored: tensors that old checkpoints carry and the model does not load (masks kept as buffers).
    """

    layers: str
    facts: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...] = ()
    packs: bool = True
    rotary: bool = True
    ignored: re.Pattern[str] | None = None

    @property
    def list_name(self) -> str:
        """The family's own word for its list of layers; organ tensors start with it."""
        return self.layers.rpartition(".")[2]

    def prefixes(self) -> tuple[str, ...]:
        """How tensor names of the layers may start: as saved with the head, or by the bare model."""
        return f"{self.layers}.", f"{self.list_name}."


_LLAMA_FACTS = {
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
_LLAMA = Family(layers="model.layers", outputs=("self_attn.o_proj.", "mlp.down_proj."), facts=_LLAMA_FACTS)
_GPT_OSS = Family(
    layers="model.layers",
    outputs=("self_attn.o_proj.", "mlp.experts.down_proj"),  # weight and bias of all experts, each one tensor
    packs=False,
    facts=_LLAMA_FACTS | {"experts": ("num_local_experts",), "experts_per_token": ("num_experts_per_tok",)},
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
    ignored=re.compile(r"attn\.(masked_)?bias"),
)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "gpt_oss": _GPT_OSS,
}


def family_of(config: Mapping[str, Any], *, where: str) -> Family:
    """The anatomy for a config.json; raises UnknownFamily for anything not listed."""
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise UnknownFamily(
            where=where,
            expected=f"model_type one of {', '.join(sorted(FAMILIES))}",
            got=name[:60],
            hint="use a base of one of these families",
        )
    return FAMILIES[name]


def layer_count(config: Mapping[str, Any]) -> int:
    """Number of decoder layers."""
    return int(config.get("num_hidden_layers", config.get("n_layer", 0)))


def blood_type(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The facts two models must share to exchange organs: JSON values, comparable with `==`."""
    family = family_of(config, where=where)
    facts: dict[str, Any] = {"family": config["model_type"]}
    for field, keys in family.facts.items():
        facts[field] = next((config[key] for key in keys if config.get(key) is not None), None)
    if family.rotary:
        facts["rope"] = _rope(config)
    if facts.get("head_dim") is None and "head_dim" in family.facts:
        facts["head_dim"] = int(facts["hidden_size"]) // int(facts["attention_heads"])
    return facts


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in one spelling: older config.json say `rope_theta` and `rope_scaling` beside each other."""
    stated = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10_000.0),
        **(config.get("rope_scaling") or {}),
    }
    rope = {key: value for key, value in stated.items() if key != "type" and value is not None}
    kind = stated.get("rope_type") or stated.get("type") or "default"
    return rope | {"rope_theta": float(rope.get("rope_theta", 10_000.0)), "rope_type": kind}


_ABSENT = ("absent",)  # equal to no value of JSON


def check_blood_type(organ: Mapping[str, Any], base: Mapping[str, Any], *, where: str) -> None:
    """Raise BloodTypeDiffers naming every fact that differs; one that is null differs from one that is not there."""
    differing = sorted(key for key in {*organ, *base} if organ.get(key, _ABSENT) != base.get(key, _ABSENT))
    if differing:
        raise BloodTypeDiffers(
            where=where,
            expected=", ".join(f"{key} {base.get(key, _ABSENT)}" for key in differing),
            got=", ".join(f"{key} {organ.get(key, _ABSENT)}" for key in differing),
            hint="an organ fits only models of the blood type it was cut from; `not-fed show` names it",
        )


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
