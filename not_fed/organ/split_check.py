"""Before anything is trained: does the cut compute what the model itself does? For models that are not listed.

Listed families are proved by tests. Of others only the list of layers is known: how layers hand on what they compute is
observed here, and losses behind the cut are compared with the model's own logits on a few random tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from not_fed.errors import FitError
from not_fed.organ.anatomy import Family, NotADecoder
from not_fed.organ.split import SplitModel

TOLERANCE = 1e-3  # nats, and relative: far below any difference that would matter, far above float32
_LENGTHS = [9, 5]


class CannotSplit(FitError):
    """The model cannot be run with some of its layers left out, so nothing can be trained between them."""

    code = "cannot-split"


class SplitDiffers(FitError):
    """Behind the cut other losses come out than from the model itself; nothing was trained."""

    code = "split-differs"


def observe(model: nn.Module, *, family: Family, where: str) -> Family:
    """The family, with how its layers return what they compute.

    Raises:
        CannotSplit: the model does not run on tokens alone, or has no head.
    """
    found: list[object] = []
    layers = model.get_submodule(family.layers)
    if not isinstance(layers, nn.ModuleList) or model.get_output_embeddings() is None:  # type: ignore[operator]
        raise _cannot(model, family, where=where, got="a model without an output embedding")
    hook = layers[0].register_forward_hook(lambda _module, _args, output: found.append(output))
    try:
        _attempt(lambda: model(input_ids=_records(model)[0][None]), model, family, where=where)
    finally:
        hook.remove()
    returned = found[0] if found else None
    return replace(family, returns=len(returned) if isinstance(returned, tuple) else None)


def check_split(split: SplitModel, *, where: str) -> None:
    """Compare losses behind the cut with the model's own, on random tokens.

    Raises:
        CannotSplit: the model does not run when layers before the span are passed through.
        SplitDiffers: other losses come out.
        NotADecoder: what the model predicts depends on tokens that come later.
    Proved by: tests/unit/test_families.py::test_a_cut_that_computes_something_else_is_refused_before_training
    """
    model, records = split.model, _records(split.model)
    inputs, targets = [record[:-1] for record in records], torch.cat([record[1:] for record in records])

    def ours() -> Tensor:
        layout = split.stack(inputs)
        return split.losses(split.prefix(layout), layout, targets)

    def own(sequences: list[Tensor]) -> list[Tensor]:
        return [model(input_ids=sequence[None], use_cache=False).logits[0].float() for sequence in sequences]

    logits = _attempt(lambda: own(inputs), model, split.family, where=where)
    changed = [torch.cat([sequence[:-1], sequence[:1]]) for sequence in inputs]  # another last token
    for before, after in zip(logits, _attempt(lambda: own(changed), model, split.family, where=where), strict=True):
        if not torch.allclose(before[:-1], after[:-1], rtol=TOLERANCE, atol=TOLERANCE):
            raise NotADecoder(
                where=where,
                expected="predictions that depend on earlier tokens only",
                got="others when a later token changes",
                hint="use a base that predicts the next token; organs learn from that",
            )
    expected = cross_entropy(torch.cat(logits), targets, reduction="none")
    got = _attempt(ours, model, split.family, where=where)
    if not torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE):
        raise SplitDiffers(
            where=where,
            expected="losses behind the cut that are the model's own",
            got=f"{float((got - expected).abs().max()):.2g} nats of difference, layers {split.span}",
            hint="its head or its layers do more than is known here; use a base of a listed family, docs/families.md",
        )


def _records(model: nn.Module) -> list[Tensor]:
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    source = torch.Generator().manual_seed(0)
    tokens = torch.randperm(len(weight), generator=source)[: sum(_LENGTHS)]  # all of them different
    return list(torch.split(tokens.to(weight.device), _LENGTHS))


def _attempt(compute: Callable[[], Any], model: nn.Module, family: Family, *, where: str) -> Any:  # noqa: ANN401
    try:
        with torch.no_grad():
            return compute()
    except Exception as error:  # noqa: BLE001  whatever a model's own code runs into
        raise _cannot(model, family, where=where, got=type(error).__name__) from None


def _cannot(model: nn.Module, family: Family, *, where: str, got: str) -> CannotSplit:
    layers = model.get_submodule(family.layers)
    kinds = sorted({type(layer).__name__ for layer in layers.children()})
    return CannotSplit(
        where=where,
        expected="a model that runs with the layers before the span passed through",
        got=f"{got}, in {type(model).__name__} with {len(list(layers.children()))} layers: {', '.join(kinds)}"[:300],
        hint="organs can still be cut and transplanted, but not trained; to train, use a base of docs/families.md",
    )
