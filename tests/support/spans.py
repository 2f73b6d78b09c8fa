"""A span of a tiny real model with a few ragged units of privacy, and their gradients by plain autograd, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from not_fed.privacy.engine.engine import Engine, Losses

RECORDS = (9, 4, 7, 2, 6)
PEOPLE = (9, 4, 7, 0, 6, 2, 8, 8, 3, 0)  # two rows a person; 0 is a row that fills up, without a loss


@dataclass
class TinySpan:
    """Units as one row of tokens each, or as `rows_per_unit` rows that follow each other; rows are padded on the right.

    Attributes:
        lengths: tokens of every row.
        scales: multiplies each unit's loss.
        autocast: whether layers run in bfloat16.
    """

    model: PreTrainedModel
    lengths: Sequence[int] = RECORDS
    rows_per_unit: int = 1
    start: int = 1
    stop: int = 3
    seed: int = 5
    scales: Tensor | None = None
    autocast: bool = False
    tokens: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.model.requires_grad_(requires_grad=False)
        for layer in self.layers:
            layer.requires_grad_(requires_grad=True)
        source = torch.Generator().manual_seed(self.seed)
        self.tokens = torch.randint(3, 128, (len(self.lengths), max(self.lengths)), generator=source)
        self.mask = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]

    @classmethod
    def of_people(cls, model: PreTrainedModel, *, start: int = 1, stop: int = 3, autocast: bool = False) -> TinySpan:
        """Five people with one or two records each."""
        return cls(model, lengths=PEOPLE, rows_per_unit=2, start=start, stop=stop, autocast=autocast)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the span."""
        body = self.model.base_model
        return list(body.h if hasattr(body, "h") else body.layers)[self.start : self.stop]

    @property
    def units(self) -> list[int]:
        """All units, by index."""
        return list(range(len(self.lengths) // self.rows_per_unit))

    def losses(self, units: Sequence[int]) -> Tensor:
        """Of each unit, the mean over its records of their mean token loss; the span's input requires a gradient."""
        rows = [unit * self.rows_per_unit + place for unit in units for place in range(self.rows_per_unit)]
        tokens, mask = self.tokens[rows], self.mask[rows]
        hidden = self.model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        seen = (mask | (torch.arange(mask.shape[1]) == 0)).long()  # attention needs something to look at
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            logits = self.model(inputs_embeds=hidden, attention_mask=seen, use_cache=False).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        each = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        records = (each * mask[:, 1:]).sum(dim=1) / mask[:, 1:].sum(dim=1).clamp(min=1)
        means = records.view(len(units), -1).sum(dim=1) / mask.any(dim=1).view(len(units), -1).sum(dim=1)
        return means if self.scales is None else means * self.scales[list(units)].to(means)

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
        """Each unit's gradient by plain autograd, alone in its batch; names as the engine's."""
        named = {
            f"{place}.{name}": weight
            for place, layer in enumerate(self.layers)
            for name, weight in layer.named_parameters()
        }
        rows = []
        for unit in self.units:
            grads = torch.autograd.grad(self.losses([unit]).sum(), list(named.values()))
            rows.append({name: grad.double() for name, grad in zip(named, grads, strict=True)})
        return rows


def flat(grads: dict[str, Tensor]) -> Tensor:
    """All weights' gradients in one float64 vector, by name."""
    return torch.cat([grads[name].double().flatten() for name in sorted(grads)])
