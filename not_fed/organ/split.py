"""A model cut at its span: the frozen prefix runs once per record, span and suffix as often as training needs.

The model's own `forward` runs unchanged (masks, rotary angles, layer types, final norm): layers before the span become
pass-throughs and the span's first layer is handed the cached activations. So whatever a family does in its forward is
done here too, without a copy of it.

A record's activations do not depend on which batch it was in, up to the order of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from not_fed.organ.anatomy import Family, Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.head_loss import token_losses
from not_fed.organ.layout import Layout, pack, stack
from not_fed.organ.organ import OrganInfo


class _Reached(Exception):
    """Carries the span's input out of the model's forward."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _PassThrough(nn.Module):
    """Stands where a layer stood that was run before, or that is left out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type  # some families look it up in their loop

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


class SplitModel:
    """A causal language model as prefix, span and suffix; only the span's parameters may ever require gradients.

    Attributes:
        span_layers: the span's modules, in order.
        head: the output embedding, `(vocabulary, hidden)` weights.
    """

    def __init__(self, model: nn.Module, *, family: Family, span: Span, alone: bool = False) -> None:
        """Freeze everything and switch dropout off.

        Args:
            model: a transformers causal language model.
            family: its anatomy.
            alone: leave all other layers out for good: the prefix is the embedding, the suffix the final norm.
        Proved by: tests/unit/test_stand_alone.py::test_a_span_alone_is_the_model_of_only_those_layers
        """
        model.requires_grad_(requires_grad=False)
        model.eval()
        self.model, self.family, self.span = model, family, span
        self._inner: nn.Module = model.base_model  # type: ignore[assignment]
        self._list_name = family.list_name
        self._layers: nn.ModuleList = getattr(self._inner, self._list_name)
        if alone:
            self._layers = nn.ModuleList(
                [
                    layer if span.start <= index < span.stop else _PassThrough(layer)
                    for index, layer in enumerate(self._layers)
                ]
            )
            setattr(self._inner, self._list_name, self._layers)
        self._cut = nn.ModuleList(
            [_PassThrough(layer) for layer in self._layers[: span.start]] + list(self._layers[span.start :])
        )
        self.span_layers: list[nn.Module] = list(self._layers[span.start : span.stop])
        self.head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.device = next(model.parameters()).device
        self._filler = (
            1 if getattr(model.config, "pad_token_id", None) == 0 else 0
        )  # any token but the one that means padding

    def parameters(self, span: Span | None = None) -> dict[str, nn.Parameter]:
        """The parameters of the span, or of other layers, by organ tensor name (`layers.0.…`)."""
        layers = self.span_layers if span is None else self._layers[span.start : span.stop]
        return {
            f"{self._list_name}.{index}.{name}": parameter
            for index, layer in enumerate(layers)
            for name, parameter in layer.named_parameters()
        }

    def load_organ(self, organ: Path, *, span: Span | None = None) -> None:
        """Put an organ's weights into the span, or into other layers; the caller has checked that it fits."""
        with safe_open(organ, framework="pt") as tensors, torch.no_grad():
            for name, parameter in self.parameters(span).items():
                parameter.copy_(tensors.get_tensor(name))

    def at(self, span: Span) -> SplitModel:
        """The same model, with the same weights in memory, cut at another span; nothing in it learns any more."""
        return SplitModel(self.model, family=self.family, span=span)

    def prefix(self, layout: Layout) -> Tensor:
        """Activations that enter the span, shape (rows, width, hidden)."""
        return self._entering(self.span.start, layout)

    def advance(self, hidden: Tensor, layout: Layout, *, to: int) -> Tensor:
        """Activations that enter layer `to`, from those that enter the span: only the layers in between run.

        Proved by: tests/unit/test_sweep.py::test_a_prefix_moved_on_is_the_prefix_computed_from_the_tokens
        """
        with self._fed(hidden), self._passing_through():
            return self._entering(to, layout)

    def finish(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Span and suffix: from span inputs (rows, width, hidden) to the final norm's output, same shape."""
        with self._fed(hidden), self._passing_through():
            return self._run(layout)

    def losses(self, hidden: Tensor, layout: Layout, targets: Tensor, *, bfloat16: bool = False) -> Tensor:
        """Negative log-likelihood of each target, nats: span inputs (rows, width, hidden) to (sum of lengths,).

        Args:
            bfloat16: compute matrix products in that precision; weights stay as they are.
        """
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            return token_losses(layout.gather(self.finish(hidden, layout)), weight, targets, softcap=self.softcap)

    def pack(self, records: Sequence[Tensor]) -> Layout:
        """Lay records out for this model, several a row where its family can tell them apart."""
        return self.stack(records) if not self.family.packs else pack(records, filler=self._filler, device=self.device)

    def stack(self, records: Sequence[Tensor]) -> Layout:
        """Lay records out for this model, one a row."""
        return stack(records, filler=self._filler, device=self.device)

    def _run(self, layout: Layout) -> Tensor:
        output = self._inner(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _entering(self, layer: int, layout: Layout) -> Tensor:
        """What a forward brings to a layer, where it ends; without gradients."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        hook = self._layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self._run(layout)
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise RuntimeError("the model never reached the span")

    @contextmanager
    def _fed(self, hidden: Tensor) -> Iterator[None]:
        """The span's first layer is handed `hidden`, whatever comes to it."""

        def feed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

        hook = self._layers[self.span.start].register_forward_pre_hook(feed, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _passing_through(self) -> Iterator[None]:
        setattr(self._inner, self._list_name, self._cut)
        try:
            yield
        finally:
            setattr(self._inner, self._list_name, self._layers)


def load_split(
    base: Base, *, span: Span, device: str = "cpu", body: Sequence[OrganInfo] = (), alone: bool = False
) -> SplitModel:
    """Load a base with transformers (float32, local files only) and cut it at the span.

    Args:
        body: organs that take the place of the base's own layers, checked by `read_body`.
        alone: as `SplitModel`; a body has no place there.
    """
    from transformers import AutoModelForCausalLM

    span.check_inside(base.layers, where=str(base.folder))
    family = base.family  # refused before anything is loaded
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, local_files_only=True)
    split = SplitModel(model.to(device), family=family, span=span, alone=alone)
    for organ in body:
        split.load_organ(organ.path, span=organ.span)
    return split


def load_tokenizer(base: Base) -> Any:  # noqa: ANN401  transformers has no common public type
    """The base's own tokenizer."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(base.folder, local_files_only=True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No library bars and chatter between ours; errors still come through."""
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    bars = chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
