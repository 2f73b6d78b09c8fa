"""Ways to the clipped sum of a micro-batch's per-record gradients: ours, its own fallback, Opacus' and torch.func's.

Every route ends in the same sums, so that they can be compared; each is set up as its authors recommend.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from not_fed.bench.dp_subjects import Subject
from not_fed.privacy.dp_sgd import clip_factor
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.engine.per_record import PerRecordLoop
from not_fed.privacy.engine.trainable import find_owners

CLIP = 1.0
Sums = dict[str, Tensor]
Route = Callable[[Sums], None]  # adds the micro-batch's clipped gradients


def plain(subject: Subject) -> Route:
    """The step without privacy: one forward, one backward, gradients of the mean loss added up in the weights."""

    def run(_: Sums) -> None:
        losses = subject.losses(range(subject.records))
        torch.autograd.backward(losses.mean())

    return run


def book_keeping(subject: Subject) -> Route:
    """Ours."""
    engine = BookKeeping(subject.layers)
    return lambda sums: engine.clip_into(sums, losses=subject.losses, units=subject.records, max_grad_norm=CLIP)


def loop(subject: Subject) -> Route:
    """Plain autograd, one record at a time: the fallback, and the measure of exactness."""
    engine = PerRecordLoop(subject.layers)
    return lambda sums: engine.clip_into(sums, losses=subject.losses, units=subject.records, max_grad_norm=CLIP)


def opacus_hooks(subject: Subject) -> Route:
    """Opacus' per-sample gradients: its own rules where it has them, functorch where not."""

    def run(sums: Sums) -> None:
        with _watching(subject, GradSampleHooks, loss_reduction="sum"):
            torch.autograd.backward(subject.losses(range(subject.records)).sum())
            _clip_samples(sums, {name: _sample(weight) for name, weight in subject.weights.items()})

    return run


def opacus_ghost(subject: Subject) -> Route:
    """Opacus' ghost clipping: a pass for the norms, and a second backward pass of the weighted loss."""

    def run(sums: Sums) -> None:
        kind = GradSampleHooksFastGradientClipping
        with _watching(subject, kind, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True) as hooks:
            losses = subject.losses(range(subject.records))
            torch.autograd.backward(losses.sum(), retain_graph=True)
            factors = hooks.get_clipping_coef()
            for weight in subject.weights.values():
                weight.grad = None
            hooks.disable_hooks()
            torch.autograd.backward((factors * losses).sum())
            for name, weight in subject.weights.items():
                sums[name] += _present(weight.grad)

    return run


def vmap_span(subject: Subject) -> Route:
    """torch.func: vmap over weights expanded to one set a record, through the span alone; what follows is batched."""
    calls = subject.calls()

    def one(weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        found = hidden.unsqueeze(0)
        for place, (layer, (args, kwargs)) in enumerate(zip(subject.layers, calls, strict=True)):
            own = {name.partition(".")[2]: weight for name, weight in weights.items() if name.startswith(f"{place}.")}
            result = functional_call(layer, own, (found, *args), kwargs)
            found = result[0] if isinstance(result, tuple) else result
        return found[0]

    def run(sums: Sums) -> None:
        each = {
            name: weight.detach().expand(subject.records, *weight.shape).requires_grad_()
            for name, weight in subject.weights.items()
        }
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the fused kernel has no batching rule
            warnings.simplefilter("ignore")  # about experts, before they fail
            outputs = vmap(one)(each, subject.hidden(range(subject.records)).detach())
        losses = subject.losses_after(outputs)
        grads = torch.autograd.grad(losses.sum(), list(each.values()))
        _clip_samples(sums, dict(zip(each, grads, strict=True)))

    return run


ROUTES: Mapping[str, Callable[[Subject], Route]] = {
    "plain": plain,
    "ours": book_keeping,
    "loop": loop,
    "hooks": opacus_hooks,
    "ghost": opacus_ghost,
    "vmap": vmap_span,
}


@contextmanager
def _watching(subject: Subject, kind: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401  untyped library
    """Opacus' hooks on the span. It watches modules in training mode only, so the owners of weights are put there."""
    owners = [owner.module for owner in find_owners(subject.layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "full backward hook is firing": of frozen inputs, harmless
        hooks = kind(nn.ModuleList(subject.layers), strict=False, **options)
        try:
            for module in owners:
                module.training = True
            yield hooks
        finally:
            hooks.cleanup()
            for module in owners:
                module.training = False
                for name in ("activations", "max_batch_len"):
                    vars(module).pop(name, None)
            for weight in subject.weights.values():
                weight.grad = None
                for name in ("grad_sample", "_norm_sample"):
                    if hasattr(weight, name):
                        delattr(weight, name)


def _clip_samples(sums: Sums, samples: Mapping[str, Tensor]) -> None:
    """From a gradient for each record, (records, *weight), to the clipped sum."""
    norms = torch.stack([torch.linalg.vector_norm(each.flatten(1), dim=1) for each in samples.values()]).norm(dim=0)
    factors = clip_factor(norms, max_grad_norm=CLIP)
    for name, each in samples.items():
        sums[name] += torch.tensordot(factors.to(each.dtype), each, dims=1)


def _sample(weight: nn.Parameter) -> Tensor:
    return _present(getattr(weight, "grad_sample", None))


def _present(found: object) -> Tensor:
    if not isinstance(found, Tensor):
        raise RuntimeError("no gradient for one of the weights")
    return found
