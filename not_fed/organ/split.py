"""A model cut at its span: the frozen prefix runs once per record, span and suffix as often as training needs.

The model's own `forward` runs unchanged (masks, rotary angles, layer types, final norm): layers before the span become
pass-throughs and the span's first layer is handed the cached activations. So whatever a family does in its forward is
done here too, without a copy of it.

A record's activations do not depend on which batch it was in, up to the order of floating-point sums.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Family, Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.head_loss import token_losses
from not_fed.organ.layout import Layout, pack, stack
from not_fed.organ.organ import OrganInfo

_OWN_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")  # logits are cap * tanh(logits / cap)


class StoredOtherwise(FitError):
    """The model's files hold a layer in another form than the loaded model has it in: fused, quantised, renamed."""

    code = "stored-otherwise"


class NoTokenizer(InputError):
    """This model's folder holds no tokenizer that can be loaded."""

    code = "no-tokenizer"


class _Reached(Exception):
    """Carries the span's input out of the model's forward."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _PassThrough(nn.Module):
    """Stands where a layer stood that was run before, or that is left out."""

    def __init__(self, layer: nn.Module, *, returns: int | None) -> None:
        super().__init__()
        self._more = None if returns is None else (None,) * (returns - 1)
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type  # some families look it up in their loop

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor | None, ...]:
        return hidden_states if self._more is None else (hidden_states, *self._more)


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
        path = family.layers.rpartition(".")[0]
        self._holder, self._list_name = model.get_submodule(path), family.list_name
        self._inner = _runs_on_tokens(model, path)
        self._layers: nn.ModuleList = getattr(self._holder, self._list_name)
        if alone:
            self._layers = nn.ModuleList(
                [
                    layer if span.start <= index < span.stop else _PassThrough(layer, returns=family.returns)
                    for index, layer in enumerate(self._layers)
                ]
            )
            setattr(self._holder, self._list_name, self._layers)
        self._cut = nn.ModuleList(
            [_PassThrough(layer, returns=family.returns) for layer in self._layers[: span.start]]
            + list(self._layers[span.start :])
        )
        self.span_layers: list[nn.Module] = list(self._layers[span.start : span.stop])
        self.head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        settings = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.softcap: float | None = next(filter(None, (getattr(settings, name, None) for name in _SOFTCAPS)), None)
        self._scale = _logit_scale(settings)
        self.device = next(model.parameters()).device
        self._filler = 1 if getattr(settings, "pad_token_id", None) == 0 else 0  # any but the one that means padding

    def parameters(self, span: Span | None = None) -> dict[str, nn.Parameter]:
        """The parameters of the span, or of other layers, by organ tensor name (`layers.0.…`)."""
        layers = self.span_layers if span is None else self._layers[span.start : span.stop]
        return {
            f"{self._list_name}.{index}.{name}": parameter
            for index, layer in enumerate(layers)
            for name, parameter in layer.named_parameters()
        }

    def beside_layers(self) -> dict[str, nn.Parameter]:
        """What stands beside the list of layers, embedding and final norm, by its names there (`norm.weight`)."""
        return {
            name: parameter
            for name, parameter in self._holder.named_parameters()
            if not name.startswith(f"{self._list_name}.")
        }

    def load_organ(self, organ: Path, *, span: Span | None = None) -> None:
        """Put an organ's weights into the span, or into other layers; the caller has checked that it fits."""
        with safe_open(organ, framework="pt") as tensors, torch.no_grad():
            for name, parameter in self.parameters(span).items():
                parameter.copy_(tensors.get_tensor(name))

    def at(self, span: Span) -> SplitModel:
        """The same whole model, with the same weights in memory, cut at another span; nothing in it learns any more."""
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
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            rows = layout.gather(self.finish(hidden, layout))
            if getattr(self.head, "bias", None) is not None:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            if self._scale != 1:
                rows = rows * self._scale
            return token_losses(rows, self._head_matrix, targets, softcap=self.softcap)

    @cached_property
    def _head_matrix(self) -> Tensor:
        """The head's weight, and its bias as one more column."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(self.head, "bias", None)
        return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)

    def pack(self, records: Sequence[Tensor]) -> Layout:
        """Lay records out for this model, several a row where its family can tell them apart."""
        return self.stack(records) if not self.family.packs else pack(records, filler=self._filler, device=self.device)

    def stack(self, records: Sequence[Tensor]) -> Layout:
        """Lay records out for this model, one a row."""
        return stack(records, filler=self._filler, device=self.device)

    def _run(self, layout: Layout) -> Tensor:
        positions = {} if layout.positions is None else {"position_ids": layout.positions}  # some have no such word
        output = self._inner(input_ids=layout.tokens, use_cache=False, **positions)
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
        setattr(self._holder, self._list_name, self._cut)
        try:
            yield
        finally:
            setattr(self._holder, self._list_name, self._layers)


def _runs_on_tokens(model: nn.Module, path: str) -> nn.Module:
    """The innermost module around the layers that takes tokens: that of `path`, or one around it."""
    while path and "input_ids" not in inspect.signature(model.get_submodule(path).forward).parameters:
        path = path.rpartition(".")[0]
    return model.get_submodule(path)


def _logit_scale(settings: Any) -> float:  # noqa: ANN401  transformers' configurations have no common public type
    """By what some families multiply their logits (Cohere, Falcon-H1), or divide them (Granite)."""
    factors = (getattr(settings, name, None) for name in ("logit_scale", "lm_head_multiplier"))
    scale = math.prod(factor for factor in factors if isinstance(factor, float | int))
    return scale / (getattr(settings, "logits_scaling", None) or 1)


def load_split(
    base: Base, *, span: Span, device: str = "cpu", body: Sequence[OrganInfo] = (), alone: bool = False
) -> SplitModel:
    """Load a base with transformers (float32, local files only) and cut it at the span.

    Args:
        body: organs that take the place of the base's own layers, checked by `read_body`.
        alone: as `SplitModel`; a body has no place there.
    Raises:
        StoredOtherwise: the model's parameters are not the tensors that its files hold.
        CannotSplit, SplitDiffers, NotADecoder: of models that are not listed, as `check_split`.
    """
    from transformers import AutoModelForCausalLM

    span.check_inside(base.layers, where=str(base.folder))
    family = base.family  # refused before anything is loaded
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, **_OWN_CODE)
    model = model.to(device)
    if not family.proved:
        from not_fed.organ.split_check import check_split, observe

        family = observe(model, family=family, where=str(base.folder))
        check_split(SplitModel(model, family=family, span=span), where=str(base.folder))
    split = SplitModel(model, family=family, span=span, alone=alone)
    _require_same_tensors(split, base)
    for organ in body:
        split.load_organ(organ.path, span=organ.span)
    return split


def _require_same_tensors(split: SplitModel, base: Base) -> None:
    model = {name: tuple(weight.shape) for name, weight in split.parameters().items()}
    files = {name: place.shape for name, place in base.span_places(split.span).items()}
    if odd := sorted(name for name in {*model, *files} if model.get(name) != files.get(name)):
        raise StoredOtherwise(
            where=f"{base.folder}, tensor {odd[0][:100]}",
            expected=f"{_shape(model.get(odd[0]))}, as in the loaded model",
            got=_shape(files.get(odd[0])),
            hint="its organs can be cut and transplanted, not trained; if it is quantised, save it in bfloat16 first",
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"shape {shape}"


def load_tokenizer(base: Base) -> Any:  # noqa: ANN401  transformers has no common public type
    """The base's own tokenizer; code that comes with it is never run, nor is anybody asked whether it may.

    Raises:
        NoTokenizer: there is none, or it is not one of transformers' own.
    Proved by: tests/unit/test_model_folder.py::test_code_that_comes_with_a_tokenizer_is_never_run
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(base.folder, **_OWN_CODE)
        except (ValueError, OSError) as error:
            raise NoTokenizer(
                where=str(base.folder), expected="a tokenizer that the installed transformers has",
                got=type(error).__name__, hint="copy the tokenizer's files into the folder; code in it is never run",
            ) from None  # fmt: skip


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
