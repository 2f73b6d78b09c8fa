"""Tiny real models of each family, built from their own configuration classes: random weights, the same every time."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 128
HIDDEN = 32
LAYERS = 4

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA3 = {**_COMMON, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12, "sliding_window_pattern": 3}


def tiny_llama(*, seed: int = 0, tie_word_embeddings: bool = True) -> PreTrainedModel:
    """Llama with grouped queries, as in SmolLM2 and TinyLlama."""
    return filled(LlamaForCausalLM, LlamaConfig(**_COMMON, tie_word_embeddings=tie_word_embeddings), seed=seed)


def tiny_mistral(*, seed: int = 0) -> PreTrainedModel:
    """Mistral, with a sliding window shorter than the tests' longest record."""
    return filled(MistralForCausalLM, MistralConfig(**_COMMON, sliding_window=4), seed=seed)


def tiny_qwen2(*, seed: int = 0) -> PreTrainedModel:
    """Qwen2: biases on queries, keys and values."""
    return filled(Qwen2ForCausalLM, Qwen2Config(**_COMMON), seed=seed)


def tiny_qwen3(*, seed: int = 0) -> PreTrainedModel:
    """Qwen3: a norm on each head's queries and keys."""
    return filled(Qwen3ForCausalLM, Qwen3Config(**_COMMON, head_dim=8), seed=seed)


def tiny_gpt2(*, seed: int = 0) -> PreTrainedModel:
    """GPT-2: transposed linear layers (Conv1D), LayerNorm, learned positions; dropout is in its configuration."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    )
    return filled(GPT2LMHeadModel, config, seed=seed)


def tiny_gpt_oss(*, seed: int = 0) -> PreTrainedModel:
    """GPT-OSS: a mixture of experts, a router and attention sinks."""
    positions = 131_072  # what its rotary scaling is made for; transformers warns about any other
    common = {**_COMMON, "max_position_embeddings": positions}
    config = GptOssConfig(**common, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)
    return filled(GptOssForCausalLM, config, seed=seed)


def tiny_gemma(*, seed: int = 0) -> PreTrainedModel:
    """Gemma: scaled embeddings, norms that multiply by 1 + weight, heads wider than their share."""
    return filled(GemmaForCausalLM, GemmaConfig(**_COMMON, head_dim=16), seed=seed, norms=0.0)


def tiny_gemma2(*, seed: int = 0) -> PreTrainedModel:
    """Gemma 2: sliding and full layers in turn, softcaps on attention and on logits, norms behind each branch."""
    config = Gemma2Config(**_COMMON, head_dim=8, sliding_window=4, query_pre_attn_scalar=12)
    return filled(Gemma2ForCausalLM, config, seed=seed, norms=0.0)


def tiny_gemma3(*, seed: int = 0) -> PreTrainedModel:
    """Gemma 3: sliding layers with angles of their own, norms on queries and keys; every third layer sees all."""
    return filled(Gemma3ForCausalLM, Gemma3TextConfig(**_GEMMA3), seed=seed, norms=0.0)


def tiny_gemma3_with_vision(*, seed: int = 0) -> PreTrainedModel:
    """Gemma 3 as it is published from 4B on: the text model inside one that also sees."""
    sees = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(
        text_config=_GEMMA3,
        vision_config={**sees, "image_size": 8, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=127,
        boi_token_index=126,
        eoi_token_index=125,
    )
    return filled(Gemma3ForConditionalGeneration, config, seed=seed, norms=0.0)


def tiny_phi3(*, seed: int = 0) -> PreTrainedModel:
    """Phi-3: queries, keys and values in one matrix, gate and up in another; half of each head is rotated."""
    return filled(Phi3ForCausalLM, Phi3Config(**_COMMON, sliding_window=4, partial_rotary_factor=0.5), seed=seed)


def tiny_olmo(*, seed: int = 0) -> PreTrainedModel:
    """OLMo: norms without weights; queries, keys and values are clipped in place."""
    return filled(OlmoForCausalLM, OlmoConfig(**_COMMON, clip_qkv=0.5), seed=seed)


def tiny_olmo2(*, seed: int = 0) -> PreTrainedModel:
    """OLMo 2: norms behind each branch instead of before it, and on queries and keys."""
    return filled(Olmo2ForCausalLM, Olmo2Config(**_COMMON), seed=seed)


def filled(kind: type[PreTrainedModel], config: object, *, seed: int = 0, norms: float = 1.0) -> PreTrainedModel:
    """Weights from a generator of our own, biases and norms off their usual 0 and `norms` so that mistakes show."""
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that we replace
        model = kind._from_config(config, dtype=torch.float32)
    source = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        centre = norms if _is_norm(name, weight) else 0.0
        scale = 0.1 if weight.ndim == 1 else 0.7 * weight.shape[-1] ** -0.5
        nn.init.normal_(weight, mean=centre, std=scale, generator=source)
    model.eval()
    return model


def _is_norm(name: str, weight: nn.Parameter) -> bool:
    return weight.ndim == 1 and name.endswith("weight")
