"""Units of privacy as record indices: who they are, which records a sampled one brings, how they lie in micro-batches.

A unit is a record or a person with all of their records. Who joins a step is drawn per unit; a person who joins brings
at most `records_per_person` of their records, freshly drawn each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from not_fed.errors import BudgetError, InputError
from not_fed.organ.data import Records
from not_fed.organ.layout import STACK_SLACK
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.groups import group_epsilon
from not_fed.privacy.randomness import RandomSource, Words, keystream

Unit = tuple[int, ...]  # the records that one unit brings to a step


class NoPeople(InputError):
    """The plan protects people, and the records do not say whom they are about."""

    code = "no-people"


class UnitUnderstates(BudgetError):
    """An epsilon per record says too little where a person has several records."""

    code = "unit-understates"


@dataclass(frozen=True, slots=True)
class Units:
    """Everybody who may join a step.

    Attributes:
        members: the records of each unit that have something to predict, by index; may be empty.
        most: how many of its records a unit brings to a step at most.
    """

    members: tuple[Unit, ...]
    most: int

    @classmethod
    def of(cls, records: Records, lengths: Sequence[int], *, plan: DpPlan) -> Units:
        """Group records by the plan's unit of privacy.

        Args:
            lengths: predicted tokens of each record; a record without any can teach nothing and is never drawn.
        Raises:
            NoPeople, UnitUnderstates: as `require_unit`.
        Guarantees: a unit whose records are all empty is still sampled, so that its presence changes no other unit.
            Copies of one text are one record: the ledger charges them once, so together they move a step by one clip.
        Proved by: tests/unit/test_units.py::test_copies_of_a_record_are_one_unit
        """
        require_unit(records, plan=plan)
        if plan.unit == "record":
            first = {text: index for index, text in reversed(list(enumerate(records.texts)))}
            return cls(tuple((index,) if lengths[index] else () for index in sorted(first.values())), 1)
        own: dict[str, list[int]] = {person: [] for person in records.people or ()}
        for index, person in enumerate(records.people or ()):
            if lengths[index]:
                own[person].append(index)
        return cls(tuple(map(tuple, own.values())), plan.records_per_person)

    def bring(self, joined: Sequence[int], *, source: RandomSource) -> list[Unit]:
        """The records that each of the units that joined a step brings to it; those that have none are left out.

        Args:
            joined: positions in `members`, drawn with the plan's sample rate (Poisson).
        Guarantees: of more than `most` records every choice is equally likely, drawn anew in each step.
        Proved by: tests/unit/test_units.py::test_a_person_brings_at_most_their_share_and_every_record_gets_its_turn
        """
        with keystream(source) as stream:
            drawn = [self._choose(self.members[place], stream.words(len(self.members[place]))) for place in joined]
        return [unit for unit in drawn if unit]

    def means(self, of_records: Sequence[float] | NDArray[np.float64]) -> list[float]:
        """Each unit's mean of a number of its records, all of them; units without a record are left out."""
        return [sum(float(of_records[index]) for index in unit) / len(unit) for unit in self.members if unit]

    def _choose(self, members: Unit, words: Words) -> Unit:
        if len(members) <= self.most:
            return members
        chosen = np.argsort(words, kind="stable")[: self.most]  # 64 bits each: ties do not happen
        return tuple(members[place] for place in sorted(chosen.tolist()))


def require_unit(records: Records, *, plan: DpPlan) -> None:
    """Refuse a plan whose unit of privacy does not suit the records.

    Raises:
        NoPeople: the unit is the person, and nobody is named.
        UnitUnderstates: the unit is the record, and a person is known to have several; says what that would mean.
    Proved by: tests/unit/test_units.py::test_a_record_level_plan_is_refused_where_a_person_has_several_records
    """
    if plan.unit == "person" and records.people is None:
        raise NoPeople(
            where="training data",
            expected="the person of each record, since the plan's unit is the person",
            got="texts alone",
            hint="name the field that holds the person's id with --unit",
        )
    if plan.unit == "record" and records.most_of_a_person > 1:
        theirs = group_epsilon(plan, records=records.most_of_a_person)
        raise UnitUnderstates(
            where=f"unit of privacy, in plan: record ({plan.epsilon()})",
            expected="the person as the unit, since the data names people and somebody has several records",
            got=f"for the person with most of them ({records.most_of_a_person:,} records) it would mean {theirs}",
            hint="leave --unit out, or name the field of the person; nothing was trained or spent",
        )


def micro_batches(units: Sequence[Unit], lengths: Sequence[int], *, micro_tokens: int) -> Iterator[list[Unit]]:
    """Units of like shape together, so that little is padded; each unit becomes equally many rows of equal width.

    Args:
        units: records of each, at least one.
        lengths: predicted tokens of each record of the data set.
        micro_tokens: padded positions (units x rows x width) in one batch. A single unit that is larger goes alone: at
            most the records of a person times the longest allowed record, both public constants.
    Guarantees: every unit comes exactly once; the size of a batch does not grow with the number of units.
    Proved by: tests/unit/test_units.py::test_positions_of_a_micro_batch_do_not_grow_with_the_sample
    """
    shapes = {unit: (len(unit), max(lengths[index] for index in unit)) for unit in units}
    batch: list[Unit] = []
    rows = width = least = 0
    for unit in sorted(units, key=lambda unit: (-shapes[unit][0], -shapes[unit][1], unit)):
        own = shapes[unit][0] * shapes[unit][1]
        wider = max(width, shapes[unit][1])
        fits = (len(batch) + 1) * rows * wider <= micro_tokens
        if batch and not (fits and min(least, own) >= STACK_SLACK * rows * wider):
            yield batch
            batch = []
        if not batch:
            rows, width, least = shapes[unit][0], 0, own
        batch.append(unit)
        width, least = max(width, shapes[unit][1]), min(least, own)
    if batch:
        yield batch
