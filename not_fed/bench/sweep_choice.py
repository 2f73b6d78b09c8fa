"""Which of the spans of a sweep to train, by a rule of one sentence; and the sweep as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEPT_GAIN = 0.9
KNEE = (
    f"without a budget the knee: the quickest training that keeps {KEPT_GAIN:.0%} of the best span's gain over the "
    "base, in nats a token"
)
BUDGET = "the lowest held-out perplexity of the spans within the budget"
COLUMNS = (
    "span", "layers", "perplexity (95 %)", "a step", "prefix", "training", "organ", "peak", "loss, first to last",
    "rate, of tried", "",
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A budget: of the seconds of the training that follows, and of the bytes of the organ's tensors."""

    seconds: float | None = None
    size_bytes: int | None = None

    def allow(self, row: Row) -> bool:
        """Whether a span is within."""
        return float(row["seconds"]) <= _most(self.seconds) and int(row["size_bytes"]) <= _most(self.size_bytes)

    def __str__(self) -> str:
        said = [] if self.seconds is None else [f"{self.seconds:g} s of training"]
        return " and ".join(said if self.size_bytes is None else [*said, megabytes(self.size_bytes)])


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The recommended row, or None; why, for these numbers; and the rule, whatever the numbers."""

    row: Row | None
    why: str
    rule: str


def recommend(rows: Sequence[Row], *, base_perplexity: float, limits: Limits) -> Choice:
    """One span, or none: none reads better than the base as it is, or none that does is within the budget.

    Proved by: tests/unit/test_sweep.py::test_a_budget_gets_the_lowest_perplexity_within_it,
        tests/unit/test_sweep.py::test_without_a_budget_the_quickest_span_with_most_of_the_gain_is_recommended
    """
    rule = KNEE if limits == NO_LIMITS else BUDGET
    better = [row for row in rows if row["perplexity"] is not None and row["perplexity"] < base_perplexity]
    if not better:
        return Choice(row=None, rule=rule, why=f"no span reads better than the base ({base_perplexity:.1f})")
    if limits == NO_LIMITS:
        return _knee(better, base_perplexity=base_perplexity, rule=rule)
    within = [row for row in better if limits.allow(row)]
    if not within:
        quickest, smallest = (min(better, key=lambda row: float(row[what])) for what in ("seconds", "size_bytes"))
        why = (
            f"no span is within {limits}: the quickest is {named(quickest)} with {quickest['seconds']:.0f} s, "
            f"the smallest {named(smallest)} with {megabytes(smallest['size_bytes'])}"
        )
        return Choice(row=None, rule=rule, why=why)
    best = min(within, key=_perplexity)
    counted = f"the {len(within)} of {len(rows)} spans" if len(within) > 1 else "the only span"
    return Choice(row=best, rule=rule, why=f"perplexity {best['perplexity']:.1f}, of {counted} within {limits}")


def _knee(better: Sequence[Row], *, base_perplexity: float, rule: str) -> Choice:
    best = min(better, key=_perplexity)
    wanted = KEPT_GAIN * gain(best, base_perplexity)
    knee = min((row for row in better if gain(row, base_perplexity) >= wanted), key=lambda row: float(row["seconds"]))
    if knee is best:
        why = f"perplexity {best['perplexity']:.1f}, the best, and no quicker span keeps {KEPT_GAIN:.0%} of its gain"
    else:
        kept = gain(knee, base_perplexity) / gain(best, base_perplexity)
        why = (
            f"perplexity {knee['perplexity']:.1f} after {knee['seconds']:.0f} s: {kept:.0%} of the gain of "
            f"{named(best)}, the best with {best['perplexity']:.1f} after {best['seconds']:.0f} s"
        )
    return Choice(row=knee, rule=rule, why=why)


def gain(row: Row, base_perplexity: float) -> float:
    """Nats a token by which a span reads better than the base.

    >>> round(gain({"perplexity": 20.0}, 40.0), 3)
    0.693
    """
    return math.log(base_perplexity / row["perplexity"])


def named(row: Row) -> str:
    """A row's span as people type it."""
    start, stop = row["span"]
    return f"{start}:{stop}"


def megabytes(size_bytes: float) -> str:
    """A size for people; never 0."""
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes:,} B"


def table(result: Mapping[str, Any]) -> str:
    """The sweep as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in result["rows"]:
        marks = [mark for mark, set_ in (("**recommended**", row["recommended"]), ("paper's", row["paper"])) if set_]
        read = "diverged" if row["perplexity"] is None else (
            f"{row['perplexity']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})"
        )  # fmt: skip
        first, last = ("-" if loss is None else f"{loss:.2f}" for loss in (row["loss_first"], row["loss_last"]))
        rates = ", ".join(f"{one['lr']:g}" for one in row["tried"])
        cells = (
            named(row), str(row["span"][1] - row["span"][0]), read, f"{row['step_seconds']:.3f} s",
            f"{row['prefix_seconds']:.2f} s", f"{row['seconds']:.1f} s", megabytes(row["size_bytes"]),
            "-" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f} MiB", f"{first} to {last}",
            f"{row['lr']:g} of {rates}", ", ".join(marks),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _most(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _perplexity(row: Row) -> float:
    return float(row["perplexity"])
