"""Models whose private step is timed: each cut at its span, with one micro-batch of random tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from not_fed.organ.anatomy import FAMILIES, Span
from not_fed.organ.checkpoint import open_base
from not_fed.organ.layout import Layout
from not_fed.organ.split import SplitModel, load_split
from not_fed.privacy.engine.trainable import find_owners

RECORDS, TOKENS = 16, 64  # of a micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A model by name, small enough to send to another process: a base's folder, or one of `MADE_UP`."""

    name: str
    span: Span
    folder: Path | None = None
    made_up: str = ""

    @property
    def title(self) -> str:
        """How tables call it."""
        return f"{self.name} {self.span}"


class Subject:
    """A model and a micro-batch; only the span learns, and every record's loss is the mean over its tokens."""

    def __init__(self, kind: Kind, *, records: int = RECORDS, tokens: int = TOKENS) -> None:
        """Load or make the model. Random weights and tokens come from a fixed seed."""
        self.kind = kind
        self.split, self.after = _cuts(kind)
        source = torch.Generator().manual_seed(1)
        size = self.split.head.get_parameter("weight").shape[0]
        self._rows = list(torch.randint(3, size, (records, tokens + 1), generator=source))
        self._hidden = self.split.prefix(self.layout(range(records)))
        self.layers: Sequence[nn.Module] = self.split.span_layers
        for layer in self.layers:
            layer.requires_grad_(requires_grad=True)
        self.weights: Mapping[str, nn.Parameter] = {
            name: weight for owner in find_owners(self.layers) for name, weight in owner.parameters().items()
        }

    @property
    def records(self) -> int:
        """In the micro-batch."""
        return len(self._rows)

    def layout(self, which: Sequence[int]) -> Layout:
        """These records, one a row."""
        return self.split.stack([self._rows[i][:-1] for i in which])

    def hidden(self, which: Sequence[int]) -> Tensor:
        """Their span inputs, (records, tokens, hidden), requiring a gradient."""
        return self._hidden[list(which)].clone().requires_grad_()

    def losses(self, which: Sequence[int]) -> Tensor:
        """Each record's mean token loss, (records,)."""
        return self._losses(self.split, self.hidden(which), which)

    def losses_after(self, outputs: Tensor) -> Tensor:
        """The same for all records, from the span's outputs on."""
        return self._losses(self.after, outputs, range(self.records))

    def _losses(self, model: SplitModel, hidden: Tensor, which: Sequence[int]) -> Tensor:
        targets = torch.cat([self._rows[i][1:] for i in which])
        return model.losses(hidden, self.layout(which), targets).reshape(len(which), -1).mean(dim=1)

    def calls(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What each layer of the span is called with for one record, its input aside."""
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        try:
            with torch.no_grad():
                self.losses([0])
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _cuts(kind: Kind) -> tuple[SplitModel, SplitModel]:
    """The model before and behind its span, over the same weights."""
    if kind.folder is not None:
        split = load_split(open_base(kind.folder), span=kind.span)
    else:
        split = SplitModel(MADE_UP[kind.made_up](), family=FAMILIES[kind.made_up], span=kind.span)
    behind = Span(kind.span.stop, kind.span.stop + 1)
    return split, SplitModel(split.model, family=split.family, span=behind)


def _gpt2() -> nn.Module:
    """The shape of GPT-2 with 124 M parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _random(GPT2LMHeadModel, GPT2Config())


def _gpt_oss() -> nn.Module:
    """Eight experts, two to a token, router and sinks; 512 wide, where the real ones are 2,880."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, num_local_experts=8, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    return _random(GptOssForCausalLM, config)


def _random(kind: Any, config: Any) -> nn.Module:  # noqa: ANN401  transformers' classes have no common public type
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced
        model: nn.Module = kind._from_config(config, dtype=torch.float32)
    source = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.02, generator=source)
    return model


MADE_UP: Mapping[str, Callable[[], nn.Module]] = {"gpt2": _gpt2, "gpt_oss": _gpt_oss}
