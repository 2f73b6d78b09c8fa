"""Units of privacy: who they are, what they bring to a step, and how they lie in micro-batches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from not_fed.organ.data import Records
from not_fed.organ.units import NoPeople, Unit, Units, UnitUnderstates, micro_batches, require_unit
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.accounting import Unit as UnitName
from tests.support.seeded import Seeded


def plan(unit: UnitName = "record", *, records_per_person: int = 1) -> DpPlan:
    return DpPlan(
        sample_rate=0.5, steps=2, noise_multiplier=2.0, max_grad_norm=1.0, divisor=10, delta=1e-5, unit=unit,
        records_per_person=records_per_person,
    )  # fmt: skip


PEOPLE = Records(("a", "b", "c", "d", "e"), ("x", "y", "x", "x", "z"), "patient", 3)


def test_a_unit_is_a_record_or_a_person_with_all_of_theirs() -> None:
    lengths = [3, 2, 0, 4, 0]
    records = Units.of(Records(PEOPLE.texts), lengths, plan=plan())
    assert records == Units(((0,), (1,), (), (3,), ()), 1)
    people = Units.of(PEOPLE, lengths, plan=plan("person", records_per_person=2))
    assert people == Units(((0, 3), (1,), ()), 2)  # z is a unit, though there is nothing to learn from them


def test_copies_of_a_record_are_one_unit() -> None:
    """The ledger charges a text once, however often the file has it; so it may move a step by one clip and no more."""
    twice = Units.of(Records(("a", "b", "a", "c", "c", "c")), [3, 2, 3, 0, 0, 0], plan=plan())
    assert twice == Units(((0,), (1,), ()), 1)
    each = Units.of(Records(("a", "a"), ("x", "y"), "patient"), [3, 3], plan=plan("person"))
    assert each.members == ((0,), (1,))  # two people who say the same are two


def test_a_person_brings_at_most_their_share_and_every_record_gets_its_turn() -> None:
    units = Units(((0, 1, 2, 3, 4), (5,), (), (6, 7)), 2)
    source, seen = Seeded(), Counter[int]()
    for _ in range(2000):
        brought = units.bring([0, 1, 2, 3], source=source)
        assert [len(unit) for unit in brought] == [2, 1, 2]
        assert set(brought[0]) <= set(range(5))
        assert brought[1:] == [(5,), (6, 7)]
        seen.update(brought[0])
    for index in range(5):
        assert seen[index] / 2000 == pytest.approx(2 / 5, abs=0.06)  # five deviations


def test_only_who_joined_brings_records() -> None:
    units = Units(((0,), (1, 2), (3,)), 2)
    assert units.bring([1], source=Seeded()) == [(1, 2)]
    assert units.bring([], source=Seeded()) == []


def test_a_record_level_plan_is_refused_where_a_person_has_several_records() -> None:
    require_unit(Records(("a", "b")), plan=plan())
    with pytest.raises(UnitUnderstates, match="one person added or removed") as caught:
        require_unit(Records(("a", "b"), most_of_a_person=2), plan=plan())
    assert caught.value.exit_code == 7


def test_a_person_level_plan_needs_people() -> None:
    with pytest.raises(NoPeople):
        require_unit(Records(("a", "b")), plan=plan("person"))
    require_unit(PEOPLE, plan=plan("person"))


LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), max_size=40)


@given(LENGTHS, st.integers(1, 300))
def test_every_unit_lies_in_one_micro_batch_of_bounded_size_and_little_padding(
    shapes: list[list[int]], micro_tokens: int
) -> None:
    lengths = [length for unit in shapes for length in unit]
    numbers = iter(range(len(lengths)))
    units: list[Unit] = [tuple(next(numbers) for _ in unit) for unit in shapes]
    batches = list(micro_batches(units, lengths, micro_tokens=micro_tokens))
    assert sorted(unit for batch in batches for unit in batch) == sorted(units)
    for batch in batches:
        area = rows(batch) * width(batch, lengths)
        assert len(batch) == 1 or len(batch) * area <= micro_tokens
        assert all(len(unit) * width([unit], lengths) >= 0.75 * area for unit in batch)


def test_positions_of_a_micro_batch_do_not_grow_with_the_sample() -> None:
    for count in (10, 1000):
        lengths = [1 + index % 12 for index in range(count)]
        batches = list(micro_batches([(index,) for index in range(count)], lengths, micro_tokens=64))
        assert max(len(batch) * rows(batch) * width(batch, lengths) for batch in batches) <= 64


def rows(batch: list[Unit]) -> int:
    return max(len(unit) for unit in batch)


def width(batch: list[Unit], lengths: list[int]) -> int:
    return max(lengths[index] for unit in batch for index in unit)
