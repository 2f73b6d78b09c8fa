"""One federation in one process: every site trains from the same start, what learnt is averaged, and so on.

The arithmetic of a federation without its messages: samples, steps, clip and noise are `dp_trainee`'s, the averages
are what a server would form. What would travel is counted, not sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from not_fed.bench.dp_trainee import Corpus, Recipe, Trainee
from not_fed.bench.organ_texts import Texts
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import perplexity_of
from not_fed.privacy.accounting import DpPlan

BYTES = 4  # of a number that travels: float32
KINDS = ("validation", "test")

How = Literal["mean", "fedex", "alone", "pooled"]
Learns = Literal["organ", "lora", "ffa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to learn together.

    Attributes:
        spans: of organs, start and stop; another one each round, in turn.
        rank: of an organ of all layers: it learns through factors of that rank, and its weights are what is averaged.
        how: the mean of what learnt; for LoRA `fedex` adds what the mean of factors misses to the frozen weights
            (Singhal et al. 2024, FedEx-LoRA, arXiv 2410.09432). `alone`: no exchange. `pooled`: all records in one
            place, which is the ceiling.
        learns: `ffa`: LoRA whose random half is shared and stays (Sun et al. 2024, FFA-LoRA, arXiv 2403.12313), so
            that the mean of its other half is exact.
    """

    learns: Learns
    how: How = "mean"
    spans: tuple[tuple[int, int], ...] = ()
    rank: int = 0

    @property
    def name(self) -> str:
        """How tables call it."""
        layers = ", ".join(f"{start}:{stop}" for start, stop in self.spans)
        what = {
            "organ": (f"organ {layers}" if len(self.spans) == 1 else f"organs {layers} in turn")
            + (f", rank {self.rank}" if self.rank else ""),
            "lora": "LoRA",
            "ffa": "FFA-LoRA",
        }[self.learns]
        after = {"mean": ", mean", "fedex": ", mean and residual (FedEx)", "alone": ", each site alone",
                 "pooled": ", records pooled"}  # fmt: skip
        return what + after[self.how]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How long: rounds, each site's steps in one, and the rank of LoRA."""

    rounds: int
    steps: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How every site trains in every round.

    Attributes:
        plan: of a site's whole run: its steps are those of all rounds together.
        private: without it the plan's samples and divisor are taken, and nothing is clipped or noised.
    """

    recipe: Recipe
    plan: DpPlan
    private: bool


class Federation:
    """Sites around one model in memory."""

    def __init__(self, base: Base, *, way: Way, sites: Mapping[str, Texts], rounds: Rounds) -> None:
        self.way, self.rounds = way, rounds
        self.sites = {"all": tuple(text for one in sites.values() for text in one.train)} if way.how == "pooled" else {
            name: one.train for name, one in sites.items()
        }  # fmt: skip
        self.held_out = {kind: {name: getattr(one, kind) for name, one in sites.items()} for kind in KINDS}
        spans = [Span(*span) for span in way.spans] or [Span(0, base.layers)]
        self.spans = [spans[number % len(spans)] for number in range(rounds.rounds)]
        self.trainee = Trainee(
            base, method="organ" if way.learns == "organ" and not way.rank else "lora", span=spans[0],
            rank=way.rank or rounds.rank,
            precision="bfloat16", frozen=".lora_A." if way.learns == "ffa" else "",
        )  # fmt: skip
        self.cpu_seconds = 0.0
        self._travelled = 0

    def run(self, training: Training) -> dict[str, Any]:
        """All rounds; then the perplexity of what each site has in the end."""
        self._first = {name: weight.detach().clone() for name, weight in self.trainee.learning.items()}
        if self.way.how == "alone":
            found = [self._site_alone(name, training) for name in self.sites]
            measured = {kind: _mean_of([one[kind] for one in found]) for kind in KINDS}
        else:
            for number in range(self.rounds.rounds):
                self._round(number, training)
            measured = self.measure()
        return measured | {"cpu_seconds": round(self.cpu_seconds, 1), "bytes": self._travelled}

    def _site_alone(self, name: str, training: Training) -> dict[str, Any]:
        self._put(self._first)
        for number in range(self.rounds.rounds):
            self._move(number)
            self._train(name, training)
        return self.measure()

    def _round(self, number: int, training: Training) -> None:
        self._move(number)
        start = {name: weight.detach().clone() for name, weight in self.trainee.learning.items()}
        learnt = []
        for name in self.sites:
            self._put(start)
            self._train(name, training)
            learnt.append({name: weight.detach().clone() for name, weight in self.trainee.learning.items()})
        mean = {name: torch.stack([one[name] for one in learnt]).mean(0) for name in start}
        if self.way.rank:  # the sites' products go into the weights, and factors begin anew
            nothing = {name: torch.zeros_like(weight) for name, weight in mean.items()}
            add_residual(learnt, nothing, names=self._modules())
            mean = self._first
        elif self.way.how == "fedex":
            add_residual(learnt, mean, names=self._modules())
        self._put(mean)
        if self.way.how != "pooled":
            self._count(self._numbers())

    def _numbers(self) -> int:
        """How many numbers a site sends: an organ's weights, whichever way they learnt, or the factors."""
        if not self.way.rank:
            return sum(weight.numel() for weight in self.trainee.learning.values())
        named = self.trainee.model.parameters().items()
        return sum(weight.numel() for name, weight in named if ".lora_" not in name)

    def _count(self, numbers: int) -> None:
        """Up once a site; down once a site, of FedEx all sites' factors, which is the smallest exact form."""
        sites = len(self.sites)
        down = numbers * sites if self.way.how == "fedex" else numbers
        self._travelled += BYTES * sites * (numbers + down)

    def _modules(self) -> dict[str, nn.Module]:
        """The modules with adapters, by the name that their factors have among what learns."""
        found = {}
        for number, layer in enumerate(self.trainee.model.span_layers):
            for name, module in layer.named_modules():
                if hasattr(module, "lora_A"):
                    found[f"{self.trainee.model.family.list_name}.{number}.{name}"] = module
        return found

    def _move(self, number: int) -> None:
        if self.trainee.model.span != self.spans[number]:
            self.trainee.move_to(self.spans[number])

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.trainee.learning.items():
                weight.copy_(weights[name])

    def _train(self, site: str, training: Training) -> None:
        cpu = time.process_time()
        corpus = self.trainee.read(site, self.sites[site])
        steps = self.trainee.train(
            corpus, range(len(corpus.data.rows)), recipe=training.recipe, private=training.private,
            plan=replace(training.plan, steps=self.rounds.steps),
        )  # fmt: skip
        for _ in steps:
            pass
        self.cpu_seconds += time.process_time() - cpu

    def measure(self) -> dict[str, Any]:
        """Perplexity on every site's held-out records, and on all of them together, for both kinds."""
        return {kind: self._measured(kind, texts) for kind, texts in self.held_out.items()}

    def _measured(self, kind: str, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        whole = tuple(text for part in texts.values() for text in part)
        corpus: Corpus = self.trainee.read(f"held out: {kind}", whole)
        members = range(len(whole))
        sums, tokens = self.trainee.loss_sums(corpus, members), np.array(corpus.data.predictions)
        together = perplexity_of(sums, tokens)
        found: dict[str, Any] = {"value": together.value, "ci_low": together.ci_low, "ci_high": together.ci_high}
        at = 0
        for name, part in texts.items():
            here = slice(at, at + len(part))
            found[name] = perplexity_of(sums[here], tokens[here]).value
            at += len(part)
        return found


def _mean_of(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def add_residual(
    learnt: Sequence[Mapping[str, Tensor]], mean: Mapping[str, Tensor], *, names: Mapping[str, Any]
) -> None:
    """Add to each frozen weight what the mean of the factors misses of the mean of their products.

    Args:
        learnt: each site's factors.
        mean: their mean, which takes their place.
        names: module by the beginning of its factors' names.
    Proved by: tests/unit/test_bench_federated.py::test_factors_and_residual_are_the_exact_mean_of_the_products
    """
    for name, module in names.items():
        a, b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
        products = torch.stack([one[b] @ one[a] for one in learnt]).mean(0)
        with torch.no_grad():
            module.base_layer.weight.add_(module.scaling["default"] * (products - mean[b] @ mean[a]))
