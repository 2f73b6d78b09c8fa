"""Rules for GPT-OSS: experts that see the tokens routed to them, and the sinks of its attention.

Experts. While the engine looks, the module runs the forward pass below in place of its own: the same arithmetic, with
the pairs of token and expert sorted by expert, so that each expert's pairs lie together and, among them, each unit's.
A unit's gradient for one expert's matrix is then that of its group of pairs, exactly as for a linear layer, and its
squared norm over all experts is the sum over its groups.

Sinks. They are one logit per head, read by the attention module itself. While the engine looks, the module finds one
copy of them per row of the batch instead.

That both are what the modules themselves do, the sentinel of `engine` checks on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from not_fed.privacy.engine.matrices import (
    by_unit,
    exact,
    gram,
    gram_is_cheaper,
    gram_squares,
    materialised_squares,
    squares,
    weighted,
)
from not_fed.privacy.engine.traces import Inputs, misused, scale, unknown
from not_fed.privacy.engine.trainable import Owner

MATRICES = (("gate_up_proj", "gate_up_proj_bias"), ("down_proj", "down_proj_bias"))


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs of token and expert, sorted by expert and then by token; a group is one unit's pairs at one expert.

    Attributes:
        tokens: which token each pair is about, shape (pairs,).
        order: which pair of the router's (token, place) order comes here, shape (pairs,).
        counts: pairs of each expert.
        units: whose each pair is, shape (pairs,).
        sizes: pairs of each group, shape (groups,); groups lie one after the other.
        owners: whose each group is, shape (groups,).
    """

    tokens: Tensor
    order: Tensor
    counts: Sequence[int]
    units: Tensor
    sizes: Tensor
    owners: Tensor

    @classmethod
    def of(cls, routed: Tensor, *, experts: int, units: int) -> Groups:
        """From the router's choice, shape (tokens, experts per token); tokens are unit after unit, equally many."""
        chosen, order = routed.flatten().sort(stable=True)
        tokens = order // routed.shape[1]
        owners = tokens // (len(routed) // units)
        groups, sizes = torch.unique_consecutive(chosen * units + owners, return_counts=True)
        counts = torch.bincount(chosen, minlength=experts).tolist()
        return cls(tokens, order, counts, owners, sizes, groups % units)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Groups of like size together, so that the largest does not set what all cost.

        Yields which groups, which pairs shape (groups, width), and which of these are filler (a group's own first pair,
        so that nothing of one unit ever stands in another's place).
        """
        starts = self.sizes.cumsum(0) - self.sizes
        classes = (2 * self.sizes.double().log2()).ceil()  # widths within a factor of 1.4
        for each in classes.unique():  # type: ignore[no-untyped-call]
            which = (classes == each).nonzero().squeeze(1)
            places = torch.arange(int(self.sizes[which].max()), device=which.device)
            filler = places >= self.sizes[which].unsqueeze(1)
            yield which, starts[which].unsqueeze(1) + places.masked_fill(filler, 0), filler


class ExpertsTrace:
    """The experts of GPT-OSS: matrices (experts, inputs, outputs) with biases (experts, outputs)."""

    def __init__(self, owner: Owner, inputs: Inputs) -> None:
        self.owner, self.inputs = owner, inputs
        self._groups: Groups | None = None
        self._seen: dict[str, Tensor] = {}  # (pairs, inputs), by the matrix's name
        self._back: dict[str, Tensor] = {}  # (pairs, outputs)

    def watch(self) -> Callable[[], None]:
        """Run our forward pass in place of the module's own."""
        instance = vars(self.owner.module)
        instance["forward"] = self._forward
        return lambda: instance.pop("forward", None)

    def _forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Shapes (tokens, hidden), (tokens, k), (tokens, k) to (tokens, hidden)."""
        if self._groups is not None:
            raise misused(self.owner, got="used more than once in one forward pass")
        if len(hidden_states) % self.inputs.units:
            raise misused(self.owner, got=f"given {len(hidden_states)} tokens of {self.inputs.units} units")
        module: Any = self.owner.module
        groups = Groups.of(router_indices, experts=module.num_experts, units=self.inputs.units)
        self._groups = groups
        gate_up = self._linear(*MATRICES[0], hidden_states.index_select(0, groups.tokens), groups)
        result = self._linear(*MATRICES[1], module._apply_gate(gate_up), groups)
        result = result * routing_weights.flatten().index_select(0, groups.order).unsqueeze(1)
        return torch.zeros_like(hidden_states).index_add(0, groups.tokens, result.to(hidden_states.dtype))

    def _linear(self, matrix: str, bias: str, rows: Tensor, groups: Groups) -> Tensor:
        """Each expert's matrix and bias on its own rows; what goes in and what comes back is kept."""
        weights, biases = self.owner.module.get_parameter(matrix), self.owner.module.get_parameter(bias)
        parts = [
            part @ weights[expert] + biases[expert] for expert, part in enumerate(_of_each(rows, groups)) if len(part)
        ]
        result = torch.cat(parts)
        if not result.requires_grad:
            raise misused(self.owner, got="run without a gradient; the span's input must require one")
        self._seen[matrix] = rows.detach()
        result.register_hook(lambda gradient: self._came_back(matrix, gradient))  # type: ignore[no-untyped-call]
        return result

    def _came_back(self, matrix: str, gradient: Tensor) -> None:
        if matrix in self._back:
            raise misused(self.owner, got="used in more than one backward pass")
        self._back[matrix] = exact(gradient)

    def require_complete(self) -> None:
        """They ran, and a gradient came back."""
        if self._groups is None:
            raise misused(self.owner, got="not run, though it is trained")
        if len(self._back) < len(MATRICES):
            raise misused(
                self.owner, got="without a gradient: the loss does not depend on it, or backward was not called"
            )

    def squared_norms(self) -> Tensor:
        """Group by group, each the cheaper way; then each unit's groups together."""
        groups = self._whole()
        of_groups = torch.zeros(len(groups.sizes), dtype=torch.float64, device=groups.sizes.device)
        for matrix, bias in MATRICES:
            if matrix in self.owner.weights:
                for which, pairs, filler in groups.batches():
                    of_groups[which] += _matrix_squares(exact(self._seen[matrix]), self._back[matrix], pairs, filler)
            if bias in self.owner.weights:
                which_group = torch.repeat_interleave(groups.sizes)
                back = self._back[matrix]
                of_groups += squares(back.new_zeros(len(groups.sizes), back.shape[1]).index_add_(0, which_group, back))
        return of_groups.new_zeros(self.inputs.units).index_add_(0, groups.owners, of_groups)

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One matrix product per expert and matrix."""
        groups = self._whole()
        of_pairs = factors[groups.units]
        for matrix, bias in MATRICES:
            seen, back = scale(exact(self._seen.pop(matrix)), self._back.pop(matrix), of_pairs)
            parts = list(zip(_of_each(seen, groups), _of_each(back, groups), strict=True))
            if matrix in self.owner.weights:
                total = back.new_zeros(len(parts), seen.shape[1], back.shape[1])
                for one, (ours, theirs) in zip(total, parts, strict=True):
                    torch.mm(ours.T, theirs, out=one)
                yield matrix, total
            if bias in self.owner.weights:
                yield bias, torch.stack([theirs.sum(dim=0, dtype=torch.float64) for _, theirs in parts])

    def _whole(self) -> Groups:
        if self._groups is None:
            raise RuntimeError("the pass is not complete")
        return self._groups


def _of_each(pairs: Tensor, groups: Groups) -> tuple[Tensor, ...]:
    """The rows of each expert's pairs."""
    parts: tuple[Tensor, ...] = pairs.split(groups.counts)  # type: ignore[no-untyped-call]
    return parts


def _matrix_squares(seen: Tensor, back: Tensor, pairs: Tensor, filler: Tensor) -> Tensor:
    """Squared norms of the groups' gradients for their experts' matrices; shape (groups,), float64."""
    ours = seen[pairs]  # (groups, width, inputs)
    theirs = back[pairs]  # (groups, width, outputs)
    theirs[filler] = 0.0
    if gram_is_cheaper(positions=ours.shape[1], inputs=ours.shape[2], outputs=theirs.shape[2]):
        return gram_squares(gram(ours), theirs)
    return materialised_squares(ours, theirs)


class SinksTrace:
    """The sinks of GPT-OSS's eager attention: one logit per head, (heads,)."""

    def __init__(self, owner: Owner, inputs: Inputs) -> None:
        self.owner, self.inputs = owner, inputs
        self._copies: Tensor | None = None  # (rows, heads)
        self._back: Tensor | None = None  # (units, heads)

    def watch(self) -> Callable[[], None]:
        """Before the module runs, put copies in front of its parameter."""
        module = self.owner.module
        before = module.register_forward_pre_hook(self._about_to_run, with_kwargs=True)

        def stop() -> None:
            before.remove()
            vars(module).pop("sinks", None)

        return stop

    def _about_to_run(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._copies is not None:
            raise misused(self.owner, got="used more than once in one forward pass")
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor) or len(hidden) % self.inputs.units:
            raise misused(self.owner, got=f"called with something other than rows of {self.inputs.units} units")
        sinks = module.get_parameter("sinks").detach()
        self._copies = sinks.expand(len(hidden), -1).clone().requires_grad_()
        vars(module)["sinks"] = _PerRow(self._copies)  # an instance's own attribute comes before its parameters

    def require_complete(self) -> None:
        """Attention read them, and a gradient came back."""
        if self._copies is None:
            raise misused(self.owner, got="not run, though it is trained")
        if self._copies.grad is None:
            raise misused(
                self.owner, got="without a gradient: the loss does not depend on it, or backward was not called"
            )
        self._back = by_unit(self._copies.grad, units=self.inputs.units).sum(dim=1)

    def squared_norms(self) -> Tensor:
        """From each unit's gradient, one number a head."""
        return squares(self._whole())

    def sums(self, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The same gradients, weighted."""
        yield "sinks", weighted(self._whole(), factors)

    def _whole(self) -> Tensor:
        if self._back is None:
            raise RuntimeError("the pass is not complete")
        return self._back


class _PerRow:
    """Stands for the sinks (heads,) where attention spreads them over the batch: its rows are not alike any more."""

    def __init__(self, copies: Tensor) -> None:
        self._copies = copies

    def reshape(self, *shape: int) -> Tensor:
        """The one thing that eager attention does with its sinks, before it expands them to (rows, heads, T, 1)."""
        if shape != (1, -1, 1, 1):
            raise TypeError("the sinks are read in a way that this rule is not for")
        return self._copies[:, :, None, None]


def check_experts(owner: Owner) -> None:
    """The module is laid out as the rule takes it to be; raises UnknownModule."""
    module, names = owner.module, {name for pair in MATRICES for name in pair}
    right = getattr(module, "has_gate", None) is True and getattr(module, "is_transposed", None) is True
    if not right or {name for name, _ in module.named_parameters()} != names or vars(module).get("_is_expert_parallel"):
        raise unknown(owner, hint="its experts are laid out in another way")


def check_sinks(owner: Owner) -> None:
    """Attention is the eager one, which reads the sinks where the rule can see it; raises UnknownModule."""
    if getattr(getattr(owner.module, "config", None), "_attn_implementation", None) != "eager":
        raise unknown(owner, hint='load the model with attn_implementation="eager", or use the engine `loop`')
