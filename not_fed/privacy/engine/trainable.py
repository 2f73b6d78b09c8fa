"""Which weights of a span are trained and who owns them, what they learn from, and what no clip can exist for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from not_fed.errors import FitError

Losses = Callable[[Sequence[int]], Tensor]  # see `engines.Engine`


class UnknownModule(FitError):
    """The engine cannot bound what one record does to this module's gradient."""

    code = "unknown-module"


class CannotClip(FitError):
    """No engine can bound what one record does to these weights."""

    code = "cannot-clip"


class SpanInTraining(FitError):
    """A span in training mode may drop activations at random, and its clip would be wrong."""

    code = "span-in-training"


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """One module that is trained.

    Attributes:
        name: its path, which starts with the layer's position in the span.
        weights: its own names of the weights it trains, and their full names.
    """

    name: str
    module: nn.Module
    weights: Mapping[str, str]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights by full name."""
        return {full: self.module.get_parameter(own) for own, full in self.weights.items()}


def find_owners(layers: Sequence[nn.Module]) -> tuple[Owner, ...]:
    """Every module of the layers that owns a weight which requires a gradient now, in order.

    Raises:
        CannotClip: nothing is trained; or a module mixes records (batch normalisation), shares a weight with another,
            or holds a trained tensor that is not registered as its weight. True for every engine.
    Proved by: tests/unit/test_engines.py::test_what_no_clip_can_exist_for_is_refused_by_every_engine
    """
    owners: list[Owner] = []
    users: dict[int, str] = {}
    for place, layer in enumerate(layers):
        for path, module in layer.named_modules(remove_duplicate=False, prefix=str(place)):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise _cannot(path, module, hint="batch normalisation mixes records; use a base without it")
            _require_registered(path, module)
            own = {name: weight for name, weight in module.named_parameters(recurse=False) if weight.requires_grad}
            for name, weight in own.items():
                if users.setdefault(id(weight), path) != path:
                    raise _cannot(path, module, hint=f"its {name} is also used by {users[id(weight)]}; untie them")
            if own:
                owners.append(Owner(path, module, {name: f"{path}.{name}" for name in own}))
    if not owners:
        raise CannotClip(
            where="span", expected="weights that require a gradient", got="none", hint="unfreeze the span's layers"
        )
    return tuple(owners)


def require_eval(layers: Sequence[nn.Module]) -> None:
    """Every module of the layers is in evaluation mode; raises SpanInTraining."""
    for place, layer in enumerate(layers):
        for path, module in layer.named_modules(prefix=str(place)):
            if module.training:
                raise SpanInTraining(
                    where=f"layer module {path}",
                    expected="evaluation mode",
                    got="training mode",
                    hint="call .eval() on the model before training with differential privacy",
                )


def total_loss(losses: Losses, units: Sequence[int]) -> Tensor:
    """Sum of the losses of these units; raises CannotClip where there is not one for each."""
    each = losses(units)
    if each.shape != (len(units),):
        raise CannotClip(
            where="losses of a micro-batch",
            expected=f"one for each of {len(units)} units",
            got=f"shape {tuple(each.shape)}",
            hint="the caller must give the mean over each unit's own tokens",
        )
    return each.sum()


def describe(module: nn.Module) -> str:
    """Its type and the names of its weights."""
    weights = ", ".join(name for name, _ in module.named_parameters(recurse=False)) or "none"
    return f"{type(module).__name__} with weights {weights}"


def _require_registered(path: str, module: nn.Module) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise _cannot(path, module, hint=f"its tensor {name} learns, but is not registered as a weight")


def _cannot(path: str, module: nn.Module, *, hint: str) -> CannotClip:
    return CannotClip(
        where=f"layer module {path}",
        expected="trained weights that one module owns and that see one record at a time",
        got=describe(module),
        hint=hint,
    )
