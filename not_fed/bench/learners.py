"""One way to teach a model: an organ, organs in turn, LoRA on all layers, full fine-tuning, or norms alone.

All take the same packed batches, the same optimiser, the same precision and the same chunked head loss (but for full
fine-tuning, whose head learns). They differ in what learns and in how far back a gradient has to travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from not_fed.errors import InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import perplexity_of
from not_fed.organ.layout import packable
from not_fed.organ.prefix import TokenisedRecords
from not_fed.organ.split import SplitModel, load_split
from not_fed.organ.steps import BETAS, GRADIENT_NORM, falling_rate

MICRO_TOKENS = 2048
WARMUP = 0.1
DECAY = {"organ": 0.01, "full": 0.01, "lora": 0.0, "norms": 0.0}

Kind = Literal["organ", "lora", "full", "norms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What learns.

    Attributes:
        spans: of an organ, start and stop; several learn one after the other, each for its share of the steps.
        rank: LoRA's; of an organ, 0 if its weights learn themselves, otherwise that of the factors whose product is
            added to them in the end.
    """

    kind: Kind
    spans: tuple[tuple[int, int], ...] = ()
    rank: int = 0

    @property
    def name(self) -> str:
        """How tables call it."""
        layers = ", ".join(f"{start}:{stop}" for start, stop in self.spans)
        names = {
            "organ": (f"organ {layers}" if len(self.spans) == 1 else f"organs {layers} in turn")
            + (f", rank {self.rank}" if self.rank else ""),
            "lora": f"LoRA r={self.rank}, all linear layers (PEFT)",
            "full": "full fine-tuning",
            "norms": "norms alone (recovery without an organ)",
        }
        return names[self.kind]


class Learner:
    """A model set up for one method."""

    def __init__(self, base: Base, method: Method, *, seed: int = 0, bfloat16: bool = True) -> None:
        """Load the base and let the method's weights learn.

        Args:
            seed: of LoRA's random half.
            bfloat16: compute matrix products in that precision; weights, sums and perplexities are float32.
        """
        self.method, self._bfloat16 = method, bfloat16
        spans = [Span(*span) for span in method.spans] or [Span(0, base.layers)]
        self._spans = spans
        self._cut = load_split(base, span=spans[0])
        if method.rank:
            layers = [number for span in spans for number in range(span.start, span.stop)]
            add_lora(self._cut.model, rank=method.rank, seed=seed, layers=layers)
        self._family = base.family

    def learn_in(self, stage: int) -> list[nn.Parameter]:
        """Let the weights of one stage learn, and no others; there are as many stages as spans, at least one."""
        model = self._cut.model
        self._cut = SplitModel(model, family=self._family, span=self._spans[stage])
        if self.method.rank:
            learning = [weight for name, weight in self._cut.parameters().items() if ".lora_" in name]
        elif self.method.kind == "organ":
            learning = list(self._cut.parameters().values())
        elif self.method.kind == "norms":
            learning = [weight for weight in model.parameters() if weight.ndim == 1]
        else:
            learning = list(model.parameters())
        for weight in learning:
            weight.requires_grad_()
        return learning

    @property
    def stages(self) -> int:
        """How many spans take turns."""
        return len(self._spans)

    def learns(self) -> int:
        """How many numbers learn, over all stages."""
        return sum(weight.numel() for stage in range(self.stages) for weight in self.learn_in(stage))

    def travels(self) -> int:
        """How many numbers are sent: an organ's weights, whichever way they learnt; otherwise what learns."""
        if self.method.kind != "organ":
            return self.learns()
        cuts = [SplitModel(self._cut.model, family=self._family, span=span) for span in self._spans]
        named = [pair for cut in cuts for pair in cut.parameters().items()]
        return sum(weight.numel() for name, weight in named if ".lora_" not in name)

    def take(self, data: TokenisedRecords, batch: Sequence[int], learning: Sequence[nn.Parameter]) -> float:
        """Leave one batch's clipped gradient in the weights; returns the mean loss per token."""
        total, loss_sum = sum(data.predictions[i] for i in batch), 0.0
        for micro in packable(batch, data.predictions, max_tokens=MICRO_TOKENS):
            loss = self.losses(data, micro, bfloat16=self._bfloat16).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(learning, GRADIENT_NORM)
        return loss_sum

    def losses(self, data: TokenisedRecords, micro: Sequence[int], *, bfloat16: bool) -> Tensor:
        """Each predicted token's loss, nats."""
        layout = self._cut.pack([data.inputs(i) for i in micro])
        targets = torch.cat([data.targets(i) for i in micro])
        if self.method.kind == "full" and torch.is_grad_enabled():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                inner: nn.Module = self._cut.model.base_model  # type: ignore[assignment]
                found = inner(input_ids=layout.tokens, position_ids=layout.positions, use_cache=False)
                logits = self._cut.head(layout.gather(found.last_hidden_state))
            return nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            hidden = self._cut.prefix(layout)
        return self._cut.losses(hidden, layout, targets, bfloat16=bfloat16)

    def perplexity(self, data: TokenisedRecords, *, bfloat16: bool = False) -> dict[str, float]:
        """Of held-out records, with its interval."""
        sums = np.zeros(len(data.rows))
        with torch.no_grad():
            for micro in packable(range(len(sums)), data.predictions, max_tokens=MICRO_TOKENS):
                losses = self.losses(data, micro, bfloat16=bfloat16)
                parts = torch.split(losses.double(), [data.predictions[i] for i in micro])
                for index, part in zip(micro, parts, strict=True):
                    sums[index] = float(part.sum())
        found = perplexity_of(sums, np.array(data.predictions))
        return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, to be copied from; the embedding of a tied head once."""
        return dict(self._cut.model.named_parameters())


def teach(
    learner: Learner, data: TokenisedRecords, batches: Sequence[Sequence[int]], *, lr: float, stages: Sequence[int] = ()
) -> list[float]:
    """Train on batches, in equal shares for each stage, each with an optimiser and a rate schedule of its own.

    Args:
        stages: the stages that get a share; all of them when none is named.
    Returns:
        the loss of each step.
    """
    chosen = list(stages) or list(range(learner.stages))
    curve: list[float] = []
    for number, stage in enumerate(chosen):
        share = batches[number * len(batches) // len(chosen) : (number + 1) * len(batches) // len(chosen)]
        learning = learner.learn_in(stage)
        optimiser = adamw(learner.method, learning, lr=lr)
        rate = falling_rate(lr, steps=len(share), warmup=WARMUP)
        for step, batch in enumerate(share):
            curve.append(learner.take(data, batch, learning))
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    return curve


def adamw(method: Method, learning: Sequence[nn.Parameter], *, lr: float) -> torch.optim.AdamW:
    """The optimiser of every method."""
    return torch.optim.AdamW(learning, lr=lr, betas=BETAS, weight_decay=DECAY[method.kind], fused=True)


def add_lora(model: nn.Module, *, rank: int, seed: int = 0, layers: Sequence[int] | None = None) -> list[nn.Parameter]:
    """PEFT's LoRA on every linear layer but the head, alpha twice the rank, no dropout; returns what learns.

    Args:
        seed: of the random half of each adapter.
        layers: numbers of the transformer layers that get one; None is all of them.
    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError(
            where="benchmark",
            expected="peft, the peer to compare with",
            got="not installed",
            hint="pip install 'not-fed[bench]'",
        ) from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_linear_names(model), lora_dropout=0.0,
                        layers_to_transform=None if layers is None else list(layers))  # fmt: skip
    inject_adapter_in_model(config, model)
    source = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=source)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _linear_names(model: Any) -> list[str]:  # noqa: ANN401  transformers' model, untyped
    """PEFT's all-linear: every linear layer but the head."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )
