"""When a site trains."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from not_fed.site.hours import parse_hours, within

MONDAY = datetime(2026, 11, 23).astimezone()  # local time, as a site's administrator means it


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A moment of that week; 0 is Monday."""
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


def test_without_hours_it_is_always_time() -> None:
    assert within([], at(3, 4))


def test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    friday_night = ["fri 20:00-06:00"]
    for day, hour, holds in ((4, 19, False), (4, 20, True), (4, 23, True), (5, 0, True), (5, 5, True), (5, 6, False)):
        assert within(friday_night, at(day, hour)) is holds
    assert not within(friday_night, at(4, 5))  # the night before Friday is Thursday's
    assert within(["sun 22:00-04:00"], at(7, 3))  # into the next week


def test_one_of_several_spans_is_enough() -> None:
    spans = ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]
    assert within(spans, at(5, 12))
    assert within(spans, at(2, 21))
    assert not within(spans, at(2, 12))


def test_days_go_round_the_week() -> None:
    assert parse_hours("sat-mon 10:00-11:00").days == {5, 6, 0}


@pytest.mark.parametrize(
    "text",
    ["", "20-06", "24:00-06:00", "20:00-20:00", "Mon 20:00-06:00", "mon 20:00 - 06:00", "8:00-9:00", "9:00"],
)
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hours such as"):
        parse_hours(text)
