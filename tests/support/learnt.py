"""Organs that have learnt something, without the training: the span's numbers, some of them moved a little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.extract import describe
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors
from tests.support.folders import save_base

TRAINED = {"mode": "in-place", "dp": None}


def learnt_organ(base: Base, span: Span, out: Path, *, seed: int = 1) -> OrganInfo:
    """Every second number of the span moved by noise of the size that training moves it."""
    source = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in span_tensors(base, span).items():
        noise = 0.01 * torch.randn(tensor.shape, generator=source)
        noise.view(-1)[::2] = 0.0
        moved[name] = (tensor + noise).to(tensor.dtype)
    places = base.span_places(span)
    write_safetensors(
        out,
        {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()},
        metadata=replace(describe(base, span), training=TRAINED).as_metadata(),
        blocks=lambda name: [moved[name].contiguous().view(torch.uint8).numpy().tobytes()],
    )
    return read_organ(out)


def fine_tuned(base: Base, folder: Path, *, seed: int = 2, dtype: torch.dtype = torch.float32) -> Base:
    """A model that went its own way from this base: every number moved a little."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.folder)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=source))
    return save_base(model.to(dtype), folder)


def span_tensors(base: Base, span: Span) -> dict[str, torch.Tensor]:
    """A model's tensors under the names that an organ gives them."""
    found = tensors_of(base.folder)
    return {own: found[name] for own, name in base.span_names(span).items()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whatever its shards."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
