"""The anatomy of a model that is not listed, found in the model itself: built from its config.json, without weights.

Only architectures that the installed transformers has are built; code that comes with a checkpoint is never run. What
is found here is checked once more when the model is loaded for training (split_check.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed.organ.anatomy import (
    FULL,
    LAYER_TYPES,
    MAX_LAYERS,
    Config,
    Family,
    NotADecoder,
    UnknownFamily,
    as_json,
    rope,
    told_by_config,
)

if TYPE_CHECKING:
    from torch import nn

_OF_NO_MATTER = re.compile(
    r"model_type|architectures|transformers_version|_.*|auto_map|(torch_)?dtype|vocab_size|tie_word_embeddings"
    r"|num_hidden_layers|n_layers?|num_layers|.*_token_ids?|.*(dropout|pdrop|drop_rate).*|init.*|.*_initializer.*"
    r"|use_cache|id2label|label2id|num_labels|problem_type|task_specific_params|summary_.*|return_dict|output_.*"
    r"|gradient_checkpointing|pretraining_tp|classifier_.*|logits?_scal.*|logits_soft_cap|final_logit_softcapping|lm_head_.*"
)  # a layer computes the same whatever these say
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_IGNORED = re.compile(r"(.+\.)?(attn|attention)\.(masked_)?bias|(.+\.)?rotary_emb\.inv_freq")  # buffers of old releases


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of a model that is not listed.

    Attributes:
        layers: how many.
        types: what sets each layer apart besides its weights; None where all of them are alike.
        blood_type: every setting of config.json that a layer may depend on.
    """

    family: Family
    layers: int
    types: tuple[str, ...] | None
    blood_type: Mapping[str, Any]


def discover(config: Config, *, file: Path) -> Found:
    """Find the layers of a decoder-only model that is not listed.

    Args:
        config: what is in `file`, the model's config.json.
    Raises:
        NotADecoder: an encoder, or an encoder with a decoder.
        UnknownFamily: transformers does not have it, or it has no one list of layers.
        BadConfig: a value is not of its kind.
    Proved by: tests/unit/test_families.py::test_a_family_that_is_not_listed_is_found_in_its_model
    """
    return _discover(json.dumps(config, sort_keys=True), file)


@lru_cache(maxsize=16)
def _discover(text: str, file: Path) -> Found:
    config, where = json.loads(text), str(file)
    whole = _settings(config, file=file)
    with told_by_config(where):
        layers = int(getattr(whole.get_text_config(), "num_hidden_layers", 0))
        if layers > MAX_LAYERS:  # building it would take hours
            raise ValueError(layers)
    model = _empty(whole, where=where)
    path = _one_list(model, layers, where=where)
    family = Family(layers=path, packs=False, ignored=_IGNORED, proved=False)
    with told_by_config(where):
        of_layers = dict(_of_layers({**whole.get_text_config().to_dict(), **config}, layers))
        types = tuple(_kinds(of_layers, layers)) if of_layers else None
        facts = as_json(_blood_type(config, without=of_layers))
    return Found(family=family, layers=layers, types=types, blood_type=facts)


def _settings(config: Config, *, file: Path) -> Any:  # noqa: ANN401  transformers' classes have no common public type
    """The configuration object of a causal language model."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto import modeling_auto as auto

    name, where = str(config.get("model_type")), str(file)
    if name not in CONFIG_MAPPING:
        raise UnknownFamily(
            where=where,
            expected="an architecture that the installed transformers has",
            got=name[:60],
            hint="code that comes with a checkpoint is never run here; use a base that transformers itself can build",
        )
    try:
        whole = AutoConfig.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  whatever a configuration class says about values it does not like
        raise UnknownFamily(
            where=where, expected=f"a configuration of {name}", got=type(error).__name__, hint="download it again"
        ) from None
    if whole.is_encoder_decoder or name not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _not_a_decoder(where, f"{name}, " + ("encoder and decoder" if whole.is_encoder_decoder else "an encoder"))
    if name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(whole, "is_decoder", False):
        raise _not_a_decoder(where, f"{name}, an encoder")
    return whole


def _not_a_decoder(where: str, got: str) -> NotADecoder:
    return NotADecoder(
        where=where,
        expected="a decoder-only model, which predicts each token from those before it",
        got=got,
        hint="the paper saw organs work less well elsewhere, and there is no next token to learn from; use a decoder",
    )


def _empty(whole: Any, *, where: str) -> nn.Module:  # noqa: ANN401
    """The model on torch's meta device: modules and shapes, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from not_fed.organ.split import quiet_transformers

    try:
        with quiet_transformers(), torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(whole)
    except Exception as error:  # noqa: BLE001  a model's own code, on a device that it may not know
        raise UnknownFamily(
            where=where,
            expected="a model that can be built without its weights",
            got=f"{whole.model_type}: {type(error).__name__}",
            hint="use a base of a listed family, docs/families.md",
        ) from None
    return model


def _one_list(model: nn.Module, layers: int, *, where: str) -> str:
    """Path of the one list of `layers` modules that lies in no other list."""
    lists = [name for name, module in _lists(model) if len(module) == layers > 0]
    if len(lists) != 1:
        seen = ", ".join(f"{name} of {len(module)}" for name, module in _lists(model))
        raise UnknownFamily(
            where=where,
            expected=f"one list of {layers} layers in {type(model).__name__}",
            got=seen[:300] or "no list of modules",
            hint="use a base whose layers follow each other in one list, docs/families.md",
        )
    return lists[0]


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    from torch import nn

    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            yield name, module


def _of_layers(settings: Mapping[str, Any], layers: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """Settings that have one value for each layer."""
    for name, value in sorted(settings.items()):
        if isinstance(value, list | tuple) and len(value) == layers and not _OF_NO_MATTER.fullmatch(name):
            yield name, value


def _kinds(of_layers: Mapping[str, Sequence[Any]], layers: int) -> Iterator[str]:
    for index in range(layers):
        plain = of_layers.get(LAYER_TYPES, [FULL] * layers)[index]
        others = [f"{name} {values[index]}" for name, values in of_layers.items() if name != LAYER_TYPES]
        yield ", ".join([str(plain), *others])


def _blood_type(config: Config, *, without: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        name: value
        for name, value in config.items()
        if value is not None and name not in without and name not in _ROPE and not _OF_NO_MATTER.fullmatch(name)
    }
    if any(config.get(name) is not None for name in _ROPE):
        facts["rope"] = rope(config)
    return {**facts, "family": config["model_type"]}
