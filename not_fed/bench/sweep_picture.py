"""A sweep as a picture: how well each span reads, by where it begins; and what that costs in seconds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from not_fed.bench.sweep_choice import gain, named
from not_fed.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody
MARKERS = "os^Dv*"
WIDTH_IN, HEIGHT_IN, DPI = 9.6, 4.4, 150
INTERVAL = "bars: 95 % interval over held-out records, much of it shared by all spans"

Row = Mapping[str, Any]


def require_pictures() -> None:
    """Find out before any training whether pictures can be drawn; raises InputError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            where="picture", expected="matplotlib", got="not installed", hint="pip install 'not-fed[demo]'"
        ) from None


def sweep_picture(result: Mapping[str, Any]) -> bytes:
    """The result of `sweep` as PNG; raises InputError where matplotlib is not installed."""
    require_pictures()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    where, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = [row for row in result["rows"] if row["perplexity"] is not None]
    lengths = sorted({_length(row) for row in rows})
    aside = {length: (n - (len(lengths) - 1) / 2) * result["layers"] / 200 for n, length in enumerate(lengths)}
    for number, length in enumerate(lengths):
        _draw([row for row in rows if _length(row) == length], number, aside[length], where, cost)
    for row in rows:
        _mark(where, row["span"][0] + aside[_length(row)], row, words=True)
        _mark(cost, row["seconds"], row, words=False)
    for axes in (where, cost):
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    where.margins(x=0.08, y=0.12)
    where.xaxis.set_major_locator(MaxNLocator(integer=True))
    where.set_xlabel(f"first layer of the span, of {result['layers']}")
    where.set_ylabel(f"held-out perplexity after {result['tokens']:,} tokens\n(lower is better)")
    if rows:
        where.legend(frameon=False, fontsize=8.5)
    cost.margins(x=0.1)
    cost.set_xlabel(f"seconds of training, {_clock(result)}")
    cost.set_xlim(left=0)
    figure.suptitle(conclusion(result), fontsize=10.5, x=0.01, ha="left")
    figure.supxlabel(INTERVAL, fontsize=7.5, x=0.99, ha="right", color="0.35")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw(same: Sequence[Row], number: int, aside: float, where: Axes, cost: Axes) -> None:
    """The spans of one length: a line by start, a little aside so that no interval hides another; points by seconds."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    read = [row["perplexity"] for row in same]
    errors = [[row["perplexity"] - row["ci_low"] for row in same], [row["ci_high"] - row["perplexity"] for row in same]]
    label = f"{_length(same[0])} layer{'s' if _length(same[0]) > 1 else ''}"
    where.errorbar(
        [row["span"][0] + aside for row in same], read, yerr=errors, linewidth=1.6, markersize=5, elinewidth=0.7,
        capsize=2, label=label, color=colour, marker=marker,
    )  # fmt: skip
    cost.plot([row["seconds"] for row in same], read, color=colour, marker=marker, linestyle="none")


def conclusion(result: Mapping[str, Any]) -> str:
    """The sentence over the picture: which span is recommended, and how the paper's does beside it."""
    rows: Sequence[Row] = result["rows"]
    base = result["base_perplexity"]["value"]
    chosen = next((row for row in rows if row["recommended"]), None)
    paper = next((row for row in rows if row["paper"] and row["perplexity"] is not None), None)
    if chosen is None:
        return f"No span is recommended (base, untrained: {base:.1f})"
    said = f"Recommended: layers {named(chosen)}, perplexity {base:.1f} to {chosen['perplexity']:.1f}"
    if paper is None or paper is chosen:
        return said if paper is None else f"{said}; it is the paper's span"
    share = gain(paper, base) / gain(chosen, base)
    return f"{said}; the paper's {named(paper)} reaches {paper['perplexity']:.1f}, {share:.0%} of that gain"


def _mark(axes: Axes, x: float, row: Row, *, words: bool) -> None:
    """A ring around the recommended span, a fainter one around the paper's; what they are, in words beside them."""
    marks = [word for word, says in (("recommended", row["recommended"]), ("the paper's", row["paper"])) if says]
    if not marks:
        return
    colour = "black" if row["recommended"] else "0.45"
    axes.plot([x], [row["perplexity"]], marker="o", markersize=13, color="none", markeredgecolor=colour)
    if words:
        low, high = axes.get_xlim()
        left = x < (low + high) / 2
        axes.annotate(
            f"{named(row)}, {' and '.join(marks)}", (x, row["perplexity"]), xytext=(9 if left else -9, -14),
            textcoords="offset points", ha="left" if left else "right", fontsize=8, color=colour, zorder=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def _length(row: Row) -> int:
    return int(row["span"][1] - row["span"][0])


def _clock(result: Mapping[str, Any]) -> str:
    if result["device"] != "cpu":
        return "by the clock"
    return f"CPU over {result['threads']} thread{'s' if result['threads'] > 1 else ''}"
