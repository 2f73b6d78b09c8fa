"""Numbers and lists as a person would write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from not_fed.envelope import claims

if TYPE_CHECKING:
    from not_fed.report.shape import Audit

_SMALL = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def number(count: int) -> str:
    """A number, small ones in words.

    >>> number(3), number(1204)
    ('three', '1,204')
    """
    return _SMALL[count] if 0 <= count < len(_SMALL) else f"{count:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> counted(3, "hospital"), counted(1, "round"), counted(24, "delivery", "deliveries")
    ('three hospitals', 'one round', '24 deliveries')
    """
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str], *, at_most: int = 6) -> str:
    """Words with commas and an `and`.

    >>> listed(["a", "b", "c"]), listed(["a"]), listed([])
    ('a, b and c', 'a', '')
    """
    if len(words) > at_most:
        words = [*words[: at_most - 1], f"{len(words) - at_most + 1} more"]
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def sentence(text: str) -> str:
    """With a capital letter, however it starts."""
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Without control characters, and without those that turn the direction of what follows.

    >>> printable("a\\nb\\u202ec")
    'a b�c'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in text)


def perplexity(value: float) -> str:
    """Three figures or so; words where there is no number.

    >>> perplexity(31.2049), perplexity(7.031), perplexity(1204.4), perplexity(math.inf)
    ('31.2', '7.03', '1,204', 'diverged')
    """
    if not math.isfinite(value):
        return "diverged"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def size(count: float) -> str:
    """Bytes in decimal units.

    >>> size(812), size(21_240_000)
    ('812 B', '21.2 MB')
    """
    step = 0
    while count >= 999.5 and step < len(_UNITS) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.0f} {_UNITS[step]}" if step == 0 or count >= 99.95 else f"{count:.1f} {_UNITS[step]}"


def duration(seconds: float) -> str:
    """A time span in the two units that matter.

    >>> duration(0.0312), duration(7.24), duration(372), duration(7260)
    ('31 ms', '7.2 s', '6 min 12 s', '2 h 1 min')
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(iso: str) -> str:
    """A date and time in words, UTC; as it stands when it is not ISO.

    >>> moment("2026-11-24T20:21:03Z")
    '24 November 2026, 20:21 UTC'
    """
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M}{' UTC' if when.tzinfo else ''}"


def layers(span: Sequence[int]) -> str:
    """A half-open span as layers.

    >>> layers([20, 23]), layers([4, 5])
    ('layers 20 to 22', 'layer 4')
    """
    if len(span) != 2:
        return ""
    first, last = span[0], span[1] - 1
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def promise(epsilon: float | None, delta: float | None, unit: str) -> str:
    """A privacy bound in one breath: the number never travels alone, and is rounded up.

    >>> promise(7.301, 1e-5, "record"), promise(None, None, "record")
    ('epsilon 7.31 at delta 1e-05 (one record added or removed)', 'none')
    """
    if epsilon is None:
        return "none"
    if delta is None:
        return f"epsilon {epsilon:.3g}, its delta unknown, per {unit or 'record'}"
    return claims.promise(epsilon, delta=delta, unit=unit or "record")


def epsilon(value: float | None) -> str:
    """A number in a column whose heading says what it bounds; the rest of the promise stands in the same row.

    >>> epsilon(1.5), epsilon(None), epsilon(math.inf)
    ('1.50', '', 'unbounded')
    """
    if value is None:
        return ""
    return f"{value:.2f}" if math.isfinite(value) else "unbounded"


def audit(found: Audit | None, *, contradicted: bool) -> str:
    """What an audit found, to stand beside the promise.

    >>> audit(None, contradicted=False)
    'none'
    """
    if found is None:
        return "none"
    parts = [f"at least {found.epsilon_lower_bound:.2f} ({found.confidence:.0%} confidence)"]
    if found.fdp_epsilon_lower_bound is not None:
        parts.append(f"f-DP {found.fdp_epsilon_lower_bound:.2f}")
    if found.noise_ratio is not None:
        parts.append(f"noise {found.noise_ratio:.3f} times the claimed")
    return ", ".join(parts) + (": CONTRADICTS THE PROMISE" if contradicted else ": consistent")
