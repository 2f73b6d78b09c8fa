"""What a poisoned round is made of: honest organs, lies made of one of them, and a scale to measure the outcome on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from not_fed.aggregation.robust import Combination, Contribution
from not_fed.aggregation.rules import Rule
from not_fed.bench.poisoning_texts import POISON, TRIGGER, SiteTexts, beginning, poisoned
from not_fed.envelope.header import ITEM_BYTES
from not_fed.organ.checkpoint import Base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.train import TrainSettings, train
from not_fed.organ.writing import write_safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """What one site does to its organ.

    Attributes:
        factor: by which it multiplies its organ's difference from the base.
        backdoor: whether that organ was trained on texts with a trigger and a fixed continuation, besides its own.
    """

    name: str
    factor: float = 1.0
    backdoor: bool = False


LIES = (
    Lie(name="nobody lies"),
    Lie(name="x -10", factor=-10.0),
    Lie(name="x 30", factor=30.0),
    Lie(name="sign flipped", factor=-1.0),
    Lie(name="backdoor", backdoor=True),
    Lie(name="backdoor x 5", factor=5.0, backdoor=True),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on every site's held-out records, and on the trigger.

    Attributes:
        perplexity: over all sites' held-out records.
        by_site: the same for each site's own.
        target: the geometric mean probability of a token of the target, after the trigger.
    """

    perplexity: float
    by_site: Mapping[str, float]
    target: float


class Scale:
    """Held-out records of all sites and, after their beginnings, trigger and target; the prefix is computed once."""

    def __init__(self, base: Base, *, sites: Mapping[str, SiteTexts], settings: TrainSettings) -> None:
        """Load the base."""
        self._sites = [site for site, texts in sites.items() for _ in texts.held_out]
        held_out = [text for texts in sites.values() for text in texts.held_out]
        prompts = [beginning(text) + TRIGGER for text in held_out]
        wholes = [beginning(text) + POISON for text in held_out]
        self._evaluator = Evaluator(
            base, records=[*held_out, *prompts, *wholes], span=settings.span, max_tokens=settings.max_tokens
        )

    def measure(self, organ: Path | None) -> Measured:
        """With an organ in place, or of the base itself."""
        self._evaluator.put_in(organ)
        losses, tokens = self._evaluator.record_losses()
        own, prompts, wholes = losses.reshape(3, -1)
        counts, short, long = tokens.reshape(3, -1)
        sites = np.array(self._sites)
        return Measured(
            perplexity=_exp(own.sum() / counts.sum()),
            by_site={
                site: _exp(own[sites == site].sum() / counts[sites == site].sum())
                for site in dict.fromkeys(self._sites)
            },
            target=_exp(-(wholes - prompts).sum() / (long - short).sum()),
        )


def _exp(value: float) -> float:
    """A model that was destroyed has a perplexity beyond any number that JSON knows: it is cut at 1e300."""
    return math.exp(min(690.0, float(value)))


def train_sites(base: Base, *, sites: Mapping[str, SiteTexts], settings: TrainSettings, out: Path) -> dict[str, Path]:
    """Each site's honest organ, and the first site's backdoored one under the name `backdoor`."""
    jobs = {site: texts.train for site, texts in sites.items()}
    jobs["backdoor"] = poisoned(next(iter(sites.values())).train)
    found = {}
    for name, texts in jobs.items():
        found[name] = train(base, records=texts, settings=settings, out=out / f"{name}.organ").organ.path
    return found


def told(organ: Path, *, factor: float, base: Base, out: Path) -> Path:
    """The organ with its difference from the base multiplied: what its site sends instead."""
    info = read_organ(organ)
    member = replace(contribution(info), factor=factor)
    start = base.span_places(info.span)
    write_combination(Combination(rule=Rule(), members=(member,), remarks=(), start=start), like=info, out=out)
    return out


def contribution(info: OrganInfo) -> Contribution:
    """As the rules take it."""
    return Contribution(name=info.path.stem, sha256=info.sha256, tensors=info.places)


def write_combination(combined: Combination, *, like: OrganInfo, out: Path) -> None:
    """An organ file with the manifest of another."""
    tensors = {
        name: (dtype, shape, ITEM_BYTES[dtype] * math.prod(shape))
        for name, (dtype, shape) in combined.tensors().items()
    }
    write_safetensors(out, tensors, metadata=like.manifest.as_metadata(), blocks=combined.blocks)


def votes_against(candidate: Measured, start: Measured) -> int:
    """How many sites find that it reads their own held-out records worse than what the round began from.

    The liar is counted as one of them, and votes for it whatever it finds.
    """
    return sum(candidate.by_site[site] > start.by_site[site] for site in list(start.by_site)[1:])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, lowest and highest over seeds."""
    return {"mean": float(np.exp(np.mean(np.log(values)))), "low": min(values), "high": max(values)}
