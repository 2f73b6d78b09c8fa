"""A span of a tiny real model with a few ragged records, and its gradients by plain autograd, one record at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from not_fed.privacy.engines import Engine, Losses

LENGTHS = (9, 4, 7, 2, 6)


@dataclass
class TinySpan:
    """Records as rows of tokens, padded on the right; `scales` multiplies each record's loss."""

    model: PreTrainedModel
    lengths: Sequence[int] = LENGTHS
    start: int = 1
    stop: int = 3
    seed: int = 5
    scales: Tensor | None = None
    tokens: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.model.requires_grad_(requires_grad=False)
        for layer in self.layers:
            layer.requires_grad_(requires_grad=True)
        source = torch.Generator().manual_seed(self.seed)
        self.tokens = torch.randint(3, 128, (len(self.lengths), max(self.lengths)), generator=source)
        self.mask = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the span."""
        body = self.model.base_model
        return list(body.h if hasattr(body, "h") else body.layers)[self.start : self.stop]

    @property
    def records(self) -> list[int]:
        """All records, by index."""
        return list(range(len(self.lengths)))

    def losses(self, records: Sequence[int]) -> Tensor:
        """Mean token loss of each record; the path to the span requires a gradient."""
        tokens, mask = self.tokens[list(records)], self.mask[list(records)]
        hidden = self.model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        logits = self.model(inputs_embeds=hidden, attention_mask=mask.long(), use_cache=False).logits
        each = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        means = (each * mask[:, 1:]).sum(dim=1) / mask[:, 1:].sum(dim=1)
        return means if self.scales is None else means * self.scales[list(records)].to(means)

    def clipped_sum(
        self, engine: Engine, units: Sequence[int], *, max_grad_norm: float, micro_batch: int = 99
    ) -> dict[str, Tensor]:
        """The engine's sum over these units, `micro_batch` of them at a time."""
        sums = engine.zero_sums()
        for start in range(0, len(units), micro_batch):
            part = units[start : start + micro_batch]
            engine.clip_into(sums, losses=self.of(part), units=len(part), max_grad_norm=max_grad_norm)
        return sums

    def of(self, units: Sequence[int]) -> Losses:
        """The losses of a micro-batch of these units, by their positions in it."""
        return lambda positions: self.losses([units[position] for position in positions])

    def one_by_one(self) -> list[dict[str, Tensor]]:
        """Each record's gradient by plain autograd, alone in its batch; names as the engine's."""
        named = {
            f"{place}.{name}": weight
            for place, layer in enumerate(self.layers)
            for name, weight in layer.named_parameters()
        }
        rows = []
        for record in self.records:
            grads = torch.autograd.grad(self.losses([record]).sum(), list(named.values()))
            rows.append({name: grad.double() for name, grad in zip(named, grads, strict=True)})
        return rows


def flat(grads: dict[str, Tensor]) -> Tensor:
    """All weights' gradients in one float64 vector, by name."""
    return torch.cat([grads[name].double().flatten() for name in sorted(grads)])
