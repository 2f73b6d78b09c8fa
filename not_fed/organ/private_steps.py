"""The steps of a private run: reserve, draw units, clip each, sum, add noise once, divide by a constant.

Nothing about a sampled batch leaves this module or is kept in it: no loss, no size, no index. What a step leaves is the
noised gradient, and what the probe learnt from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from not_fed.organ.charging import Reserved
from not_fed.organ.data import Records
from not_fed.organ.layout import packable
from not_fed.organ.prefix import TokenisedRecords, compute_prefix
from not_fed.organ.resume import Kept
from not_fed.organ.steps import Proximal, SpanData
from not_fed.organ.units import Unit, Units, micro_batches
from not_fed.privacy.accounting import DpPlan, NoisedRelease
from not_fed.privacy.audit.probe import Probe
from not_fed.privacy.dp_sgd import noisy_gradient, require_bounded
from not_fed.privacy.engine.engine import COARSE_TOLERANCE, Engine, check_against_autograd
from not_fed.privacy.randomness import RandomSource
from not_fed.privacy.release import UNITS, Released, release_mean_loss, release_units

SENTINEL_ROWS = 2  # records of the larger made-up unit where units are people; the other has one less


def unit_losses(data: SpanData, units: Sequence[Unit]) -> Tensor:
    """Each unit's loss, the mean over its records of their mean token losses: (units,).

    The units' rows follow each other, equally many each; where a unit has fewer records, rows without any token fill
    it up, which have no loss.
    """
    rows = max(len(unit) for unit in units)
    empty = torch.empty(0, dtype=torch.int64)
    inputs = [data.tokens.inputs(unit[row]) if row < len(unit) else empty for unit in units for row in range(rows)]
    layout = data.model.stack(inputs)
    losses = data.losses([index for unit in units for index in unit], layout, from_inputs=True)
    sums = losses.new_zeros(len(inputs)).index_add(0, layout.owners(), losses)  # one a row
    means = sums.div(layout.lengths.clamp(min=1)).view(len(units), rows)
    return means.sum(dim=1) / means.new_tensor([len(unit) for unit in units])


def check_engine(engine: Engine, data: SpanData, *, per_unit: int) -> None:
    """Compare the engine with plain autograd on two made-up units of unlike length, before anything is spent.

    Their tokens are random and public, their lengths those that the training will meet. So a wrong engine is found
    without touching a record's gradient.

    Raises:
        SentinelDisagrees: it is wrong. Nothing was trained or spent.
    """
    rows = min(per_unit, SENTINEL_ROWS)
    longest = max(1, min(max(data.lengths), data.micro_tokens // (2 * rows)))
    source, vocabulary = torch.Generator().manual_seed(0), len(data.model.head.weight)  # type: ignore[arg-type]
    lengths = [longest] * rows + [max(1, longest // 2)] * max(1, rows - 1)
    tokens = TokenisedRecords(tuple(torch.randint(vocabulary, (length + 1,), generator=source) for length in lengths))
    cache = compute_prefix(data.model, tokens, key="", micro_tokens=data.micro_tokens, store=None)
    made_up = replace(data, tokens=tokens, cache=cache)
    units: list[Unit] = [tuple(range(rows)), tuple(range(rows, len(lengths)))]
    check_against_autograd(
        engine,
        losses=lambda which: unit_losses(made_up, [units[place] for place in which]),
        tolerance=COARSE_TOLERANCE if data.bfloat16 else None,
    )


class PrivateSteps:
    """DP-SGD steps of one run of a plan, under its reservation."""

    save_every_s = 0.0  # a step that is lost is drawn again, and paid for again

    def __init__(
        self,
        data: SpanData,
        *,
        engine: Engine,
        units: Units,
        plan: DpPlan,
        held: Reserved,
        declared_units: float | None,
        goes_on: bool,
        proximal: float,
        source: RandomSource,
    ) -> None:
        """Use `begin`, which checks and reserves first."""
        self._data, self._engine, self._units, self._plan = data, engine, units, plan
        self._held, self._declared_units, self._source = held, declared_units, source
        self._goes_on = goes_on
        self._proximal = Proximal(engine.parameters, mu=proximal)
        self._shapes = {name: weight.shape for name, weight in engine.parameters.items()}
        self._probe = Probe(self._shapes, plan=plan, source=source)
        self._released: list[dict[str, Any]] = []

    @classmethod
    def begin(
        cls,
        data: SpanData,
        *,
        records: Records,
        plan: DpPlan,
        declared_units: float | None,
        engine: Engine,
        goes_on: bool,
        reserve: Callable[[], Reserved],
        source: RandomSource,
        proximal: float = 0.0,
    ) -> Self:
        """Everything that can fail for nothing, then the reservation.

        Args:
            goes_on: it starts from organs, which may have seen these records in an earlier run.
            proximal: see `Proximal`.
        Raises:
            NoPeople, UnitUnderstates, SentinelDisagrees, UnknownModule: nothing was spent.
            BudgetSpent: it was refused; nothing was spent.
        """
        units = Units.of(records, data.lengths, plan=plan)
        check_engine(engine, data, per_unit=units.most)
        return cls(
            data,
            engine=engine,
            units=units,
            plan=plan,
            held=reserve(),
            declared_units=declared_units,
            goes_on=goes_on,
            proximal=proximal,
            source=source,
        )

    @property
    def total(self) -> int:
        """As planned: an empty sample is a step of noise alone."""
        return self._plan.steps

    @property
    def tokens(self) -> int:
        """What is expected, over all steps; the real number would tell how large the samples were."""
        lengths, most = self._data.lengths, self._units.most
        once = sum(
            sum(lengths[index] for index in unit) * min(1.0, most / len(unit)) for unit in self._units.members if unit
        )
        return round(self._plan.sample_rate * self._plan.steps * once)

    def take(self, number: int) -> str:
        """One step, written down in the ledger before it begins; there is nothing to show about it."""
        self._held.start_step(remaining=self.total - number - 1)
        units = self._units.bring(self._probe.draw(len(self._units.members)), source=self._source)
        sums = self._engine.zero_sums()
        for micro in micro_batches(units, self._data.lengths, micro_tokens=self._data.micro_tokens):
            self._clip_into(sums, micro)
        require_bounded(sums, units=len(units), max_grad_norm=self._plan.max_grad_norm)
        self._probe.add_to(sums)
        released = noisy_gradient(sums, plan=self._plan, source=self._source)
        self._probe.saw(released)
        for name, gradient in released.items():
            self._engine.parameters[name].grad = gradient
        self._proximal.add_to_gradients(self._engine.parameters)
        return ""

    def finish(self) -> bool:
        """Compute the numbers that leave with noise, once: a resumed run finds them and draws no second noise."""
        if self._released or not self._plan.releases:
            return False
        self._released = [one.as_manifest() for one in self._release_all()]
        return True

    def state(self) -> tuple[Mapping[str, object], Mapping[str, Tensor]]:
        """The probe's, and what was released."""
        return {"released": self._released}, self._probe.state()

    def restore(self, kept: Kept) -> None:
        """Go on with the canaries and releases of the interrupted run."""
        if kept.done:
            self._probe = Probe.restore(kept.tensors, self._shapes, plan=self._plan, source=self._source)
            self._released = list(kept.facts.get("released", []))

    def summary(self) -> dict[str, Any]:
        """What the manifest says: the claim, what the audit found, what was released, and the ledger's newest row.

        Raises:
            AuditAlarm: the run did not do what it claims. No organ may be written.
        Guarantees: none of it depends on how many records there are, or on what was drawn, but through noise.
        """
        claim = self._plan.as_claim(
            repeated_steps=self._held.repeated_steps, repeated_releases=self._held.repeated_releases
        )
        if self._goes_on and (spent := self._held.spent) is not None:
            claim["epsilon"] = max(claim["epsilon"], spent)  # the start may have seen the records: all runs count
        return {
            "steps": self._plan.steps,
            "engine": self._engine.name,
            "dp": claim,
            "audit": self._probe.result(),
            "releases": self._released,
            "ledger_head": self._held.head,
        }

    def settle(self) -> None:
        """Close the reservation."""
        self._held.commit()

    def _clip_into(self, sums: dict[str, Tensor], micro: Sequence[Unit]) -> None:
        self._engine.clip_into(
            sums,
            losses=lambda which: unit_losses(self._data, [micro[place] for place in which]),
            units=len(micro),
            max_grad_norm=self._plan.max_grad_norm,
        )

    def _release(self, release: NoisedRelease) -> Released:
        if release.name == UNITS:
            return release_units(len(self._units.members), release=release, source=self._source)
        declared = self._declared_units or 0.0
        return release_mean_loss(self._mean_losses(), release=release, declared_units=declared, source=self._source)

    def _release_all(self) -> list[Released]:
        released = []
        for release in self._plan.releases:
            self._held.start_release(release.name)
            released.append(self._release(release))
        return released

    def _mean_losses(self) -> list[float]:
        """Of every unit that has something to predict, with the final weights; all of a person's records count."""
        data, lengths = self._data, self._data.lengths
        means = [0.0] * len(lengths)
        for micro in packable(range(len(lengths)), lengths, max_tokens=data.micro_tokens):
            layout = data.model.pack([data.tokens.inputs(index) for index in micro])
            with torch.no_grad():
                losses = data.losses(micro, layout).double()
            sums = losses.new_zeros(len(micro)).index_add(0, layout.owners(), losses)
            for index, mean in zip(micro, sums.div(layout.lengths).tolist(), strict=True):
                means[index] = mean
        return self._units.means(means)
