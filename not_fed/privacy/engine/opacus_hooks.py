"""Per-unit gradients by the hooks of Opacus, for comparison: 1.6 times the cost, and a gradient per row in memory.

Opacus finds the gradients; clip, sum and noise are ours. It watches a module only in training mode, so the modules that
own weights are put there while it looks, and no other: dropout stays off.

Source: Yousefpour et al. 2021, Opacus: User-Friendly Differential Privacy Library in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from not_fed.privacy.dp_sgd import clip_factor, zero_sums
from not_fed.privacy.engine.matrices import exact, squares
from not_fed.privacy.engine.trainable import (
    Losses,
    Owner,
    UnknownModule,
    describe,
    find_owners,
    require_eval,
    total_loss,
)


class OpacusHooks:
    """Clipped sums of per-unit gradients, from Opacus' per-row gradients.

    Args:
        layers: the span's layers in order. Their weights that require a gradient now are the ones trained.
    Raises:
        UnknownModule: Opacus cannot do one of their modules, such as the experts of GPT-OSS, or OLMo's clipped queries.
        CannotClip: no engine can train them; see `find_owners`.
    """

    name = "opacus"

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = tuple(layers)
        self._owners = find_owners(self._layers)
        for owner in self._owners:
            if not _is_supported(type(owner.module)):
                raise _cannot(owner, got=describe(owner.module))
        _require_not_overwritten(self._layers)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: weight for owner in self._owners for name, weight in owner.parameters().items()
        }

    def zero_sums(self) -> dict[str, Tensor]:
        """As `Engine.zero_sums`."""
        return zero_sums(self.parameters)

    def clip_into(self, sums: dict[str, Tensor], *, losses: Losses, units: int, max_grad_norm: float) -> None:
        """As `Engine.clip_into`. Memory: a gradient of all weights for every row.

        Raises:
            UnknownModule: Opacus has not one gradient for each row.
            SpanInTraining: a module of the span is in training mode.
            BadClip: max_grad_norm is not a positive, finite number.
        """
        require_eval(self._layers)
        with self._watched():
            torch.autograd.backward(total_loss(losses, range(units)))
            grads = {
                name: _of_units(owner, weight, units=units)
                for owner in self._owners
                for name, weight in owner.parameters().items()
            }
        norms = torch.stack([squares(grad.flatten(1)) for grad in grads.values()]).sum(dim=0).sqrt()
        factors = clip_factor(norms, max_grad_norm=max_grad_norm).tolist()
        for name, grad in grads.items():
            for factor, of_unit in zip(factors, grad, strict=True):
                if factor > 0.0:  # zero times infinity is not zero
                    sums[name].add_(of_unit, alpha=factor)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Opacus' hooks on the layers, and nothing of theirs left behind."""
        modules = [owner.module for owner in self._owners]
        before = {weight: weight.grad for weight in self.parameters.values()}
        hooks = GradSampleHooks(nn.ModuleList(self._layers), strict=False, loss_reduction="sum")
        try:
            for module in modules:
                module.training = True
            for weight in before:
                weight.grad = None  # autograd sums into whatever it finds
            yield
        finally:
            hooks.cleanup()
            for module in modules:
                module.training = False
                vars(module).pop("activations", None)
                vars(module).pop("max_batch_len", None)
            for weight, gradient in before.items():
                weight.grad = gradient


def _require_not_overwritten(layers: Sequence[nn.Module]) -> None:
    """OLMo may clip queries, keys and values in place: what Opacus' hooks hand on must not be written to."""
    for place, layer in enumerate(layers):
        for path, module in layer.named_modules(prefix=str(place)):
            if getattr(getattr(module, "config", None), "clip_qkv", None) is not None:
                raise _cannot(Owner(path, module, {}), got=f"{type(module).__name__} with clip_qkv")


def _is_supported(kind: type[nn.Module]) -> bool:
    """Opacus has a rule of its own for it; or it is given one tensor, and gives one, so that functorch can run it."""
    return kind in GradSampleHooks.GRAD_SAMPLERS or kind is Conv1D or kind.__name__.endswith("RMSNorm")


def _of_units(owner: Owner, weight: nn.Parameter, *, units: int) -> Tensor:
    """From a gradient for each row to one for each unit, shape (units, *weight), float32 or better."""
    rows = getattr(weight, "grad_sample", None)
    if not isinstance(rows, Tensor) or len(rows) % units:
        raise _cannot(owner, got="not one gradient for each row")
    return exact(rows) if len(rows) == units else exact(rows).reshape(units, -1, *weight.shape).sum(dim=1)


def _cannot(owner: Owner, *, got: str) -> UnknownModule:
    return UnknownModule(
        where=f"layer module {owner.name}",
        expected="a module that Opacus can do",
        got=got,
        hint="train with the engine `book-keeping`",
    )
