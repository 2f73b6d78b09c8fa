"""Organs to be attacked: trained by the real `train` on parts of the records, the frozen prefix run once for all.

Nothing here touches a budget: each private run has a ledger of its own in a folder that is deleted with the organ. So
whatever is measured is for the data holder's own eyes: the organs and all numbers about them stay in the house.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from not_fed.bench.attack_scores import Floats
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import ToLedger
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.fit import check_fit
from not_fed.organ.layout import packable
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.prefix import PrefixCache, TokenisedRecords, compute_prefix, tokenise
from not_fed.organ.split import load_split, load_tokenizer
from not_fed.organ.train import NothingToLearn, Speed, TrainSettings, train
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.progress import Progress, silent

MICRO_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to train the organs that are attacked.

    Attributes:
        name: such as "non-private" or "epsilon 8".
        settings: with or without a plan.
    """

    name: str
    settings: TrainSettings

    def as_dict(self) -> dict[str, Any]:
        """For JSON: how organs of this kind are trained, and their claim."""
        settings, claim = self.settings, self.settings.dp.as_claim() if self.settings.dp else None
        return {
            "name": self.name,
            "epsilon": claim["epsilon"] if claim else None,
            "lr": settings.lr,
            "epochs": settings.epochs if claim is None else None,
            "precision": settings.precision,
            "dp": claim,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """Records as tokens, with the span's inputs of all of them."""

    records: Records
    data: TokenisedRecords
    cache: PrefixCache

    @property
    def predictions(self) -> Floats:
        """Predicted tokens of each record, shape (records,)."""
        return np.array(self.data.predictions, dtype=np.float64)


class Operation:
    """One base model on the table: texts are prepared once, organs put in and taken out as often as wanted."""

    def __init__(
        self, base: Base, *, span: Span, max_tokens: int = 512, device: str = "cpu", progress: Progress = silent
    ) -> None:
        """Load the base and cut it at the span."""
        self._base, self._max_tokens, self._device, self._progress = base, max_tokens, device, progress
        self._tokenizer = load_tokenizer(base)
        self._model = load_split(base, span=span, device=device)
        self._own = {name: parameter.detach().clone() for name, parameter in self._model.parameters().items()}

    def readable(self, texts: Sequence[str]) -> list[int]:
        """Texts of two tokens or more, by index: a loss can speak for these.

        Raises:
            NothingToLearn: there is none.
        """
        lengths = tokenise(self._tokenizer, texts, max_tokens=self._max_tokens).predictions
        if not any(lengths):
            raise NothingToLearn(
                where="records to attack",
                expected="a record of two tokens or more",
                got=f"{len(texts):,} shorter ones",
                hint="check --text-field",
            )
        return [index for index, length in enumerate(lengths) if length]

    def prepare(self, records: Records) -> Prepared:
        """Run the frozen prefix over records of two tokens or more."""
        data = tokenise(self._tokenizer, records.texts, max_tokens=self._max_tokens)
        cache = compute_prefix(
            self._model, data, key="", micro_tokens=MICRO_TOKENS, store=None, progress=self._progress
        )
        return Prepared(records, data, cache)

    def losses(self, prepared: Prepared, organ: Path | None = None) -> Floats:
        """Summed loss of each record in nats, under an organ or under the base: shape (records,)."""
        self._put_in(organ)
        sums = np.zeros(len(prepared.records.texts))
        lengths = prepared.data.predictions
        for micro in packable(range(len(sums)), lengths, max_tokens=MICRO_TOKENS):
            layout = self._model.pack([prepared.data.inputs(i) for i in micro])
            targets = torch.cat([prepared.data.targets(i) for i in micro]).to(self._model.device)
            with torch.no_grad():
                losses = self._model.losses(layout.scatter(prepared.cache.rows(micro)), layout, targets).double()
            each = losses.new_zeros(len(micro)).index_add(0, layout.owners(), losses)
            sums[micro] = each.cpu().numpy()
        return sums

    def completes(self, prompts: Sequence[str], wholes: Sequence[str], organ: Path | None = None) -> list[bool]:
        """Does greedy writing from each prompt, token by token, give the whole text?"""
        self._put_in(organ)
        return [self._writes(prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]

    def _writes(self, prompt: str, whole: str) -> bool:
        start, end = tokenise(self._tokenizer, [prompt, whole], max_tokens=self._max_tokens).rows
        if not torch.equal(end[: len(start)], start) or len(end) == len(start):
            return False
        written = start.to(self._model.device)
        for _ in range(len(end) - len(start)):
            with torch.no_grad():
                logits = self._model.model(input_ids=written.unsqueeze(0), use_cache=False).logits[0, -1]
            written = torch.cat([written, logits.argmax().reshape(1)])
        return torch.equal(written.cpu(), end)

    @contextmanager
    def trained(self, kind: Kind, prepared: Prepared, indices: Sequence[int], *, seed: int) -> Iterator[OrganInfo]:
        """An organ trained on some of the records; deleted at the end of the block, with the ledger that paid."""
        with tempfile.TemporaryDirectory(prefix="not-fed-attack-") as folder:
            done = train(
                self._base,
                records=part(prepared.records, indices),
                settings=replace(kind.settings, seed=seed),
                out=Path(folder) / "target.organ",
                charge=ToLedger(ledger=Ledger.at(Path(folder) / "ledger"), name="rehearsal"),
                speed=Speed(device=self._device),
                prefix_store=_Rows(prepared.cache, indices),
            )
            yield done.organ

    def _put_in(self, organ: Path | None) -> None:
        if organ is not None:
            check_fit(read_organ(organ), base=self._base, at=self._model.span.start)
            self._model.load_organ(organ)
            return
        with torch.no_grad():
            for name, parameter in self._model.parameters().items():
                parameter.copy_(self._own[name])


def part(records: Records, indices: Sequence[int]) -> Records:
    """Some of the records, with the people they are about."""
    people = None if records.people is None else tuple(records.people[i] for i in indices)
    return replace(records, texts=tuple(records.texts[i] for i in indices), people=people)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Hands a training run the rows that were computed for all texts; keeps nothing itself."""

    cache: PrefixCache
    indices: Sequence[int]

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        """Span inputs of this run's records, record after record."""
        return {"hidden": self.cache.rows(self.indices)}

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Not needed."""
