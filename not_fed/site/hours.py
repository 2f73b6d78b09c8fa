"""When a site trains: spans of local time such as `20:00-06:00` or `sat,sun 00:00-24:00`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(DAYS)
_SPAN = re.compile(
    rf"(?:(?P<days>(?:{_DAY})(?:-(?:{_DAY}))?(?:,(?:{_DAY})(?:-(?:{_DAY}))?)*) )?"
    r"(?P<start>(?:[01]\d|2[0-3]):[0-5]\d)-(?P<stop>(?:[01]\d|2[0-3]):[0-5]\d|24:00)"
)


@dataclass(frozen=True, slots=True)
class Hours:
    """One span of the week: on these days it begins at `start` minutes; where `stop` is not later, it ends next day."""

    days: frozenset[int]
    start: int
    stop: int

    def holds(self, now: datetime) -> bool:
        """Whether the span has begun and not ended at this local time."""
        minute, today = 60 * now.hour + now.minute, now.weekday()
        if self.start < self.stop:
            return today in self.days and self.start <= minute < self.stop
        yesterday = (now - timedelta(days=1)).weekday()
        return (today in self.days and minute >= self.start) or (yesterday in self.days and minute < self.stop)


def parse_hours(text: str) -> Hours:
    """One span.

    Raises:
        ValueError: it is none.

    >>> parse_hours("fri-sun 20:00-06:00")
    Hours(days=frozenset({4, 5, 6}), start=1200, stop=360)
    """
    found = _SPAN.fullmatch(text)
    if found is None or found["start"] == found["stop"]:
        raise ValueError('hours such as "20:00-06:00" or "mon-fri 20:00-06:00"')
    return Hours(_days(found["days"]), _minutes(found["start"]), _minutes(found["stop"]))


def within(hours: Sequence[str], now: datetime) -> bool:
    """Whether one of the spans holds at `now`, in this machine's local time; without any span, always.

    Proved by: tests/unit/test_site_hours.py::test_a_span_over_midnight_belongs_to_the_day_on_which_it_begins
    """
    local = now.astimezone()
    return not hours or any(parse_hours(text).holds(local) for text in hours)


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, stop = DAYS.index(first), DAYS.index(last or first)
        days |= {(start + i) % 7 for i in range((stop - start) % 7 + 1)}
    return frozenset(days)


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return 60 * int(hours) + int(minutes)
