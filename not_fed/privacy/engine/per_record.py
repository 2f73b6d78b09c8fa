"""Plain autograd, one unit at a time: for any module whatever, in the least memory, at two to three times the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from not_fed.privacy.dp_sgd import clip_factor, l2_norm, zero_sums
from not_fed.privacy.engine.trainable import Losses, find_owners, require_eval, total_loss


class PerRecordLoop:
    """Clipped sums of per-unit gradients, each unit in a forward and a backward pass of its own.

    Args:
        layers: the span's layers in order. Their weights that require a gradient now are the ones trained.
    Raises:
        CannotClip: no engine can train them; see `find_owners`.
    """

    name = "per-record loop"

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = tuple(layers)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: weight for owner in find_owners(self._layers) for name, weight in owner.parameters().items()
        }

    def zero_sums(self) -> dict[str, Tensor]:
        """As `Engine.zero_sums`."""
        return zero_sums(self.parameters)

    def clip_into(
        self,
        sums: dict[str, Tensor],
        *,
        losses: Losses,
        units: int,
        max_grad_norm: float,
    ) -> None:
        """As `Engine.clip_into`.

        Raises:
            SpanInTraining: a module of the span is in training mode.
            BadClip: max_grad_norm is not a positive, finite number.
        """
        require_eval(self._layers)
        for unit in range(units):
            grads = plain_gradient(self.parameters, total_loss(losses, [unit]))
            factor = float(clip_factor(l2_norm(grads), max_grad_norm=max_grad_norm))
            for name, grad in grads.items():
                if factor > 0.0:  # zero times infinity is not zero
                    sums[name].add_(grad, alpha=factor)


def plain_gradient(parameters: Mapping[str, nn.Parameter], loss: Tensor) -> dict[str, Tensor]:
    """Of one loss, by weight name, zero where it does not depend on a weight; `.grad` stays as it was."""
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))
