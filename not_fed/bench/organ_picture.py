"""Perplexity against what it costs: CPU seconds, bytes that travel, memory; the best that each budget buys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"organ": "#0b6e4f", "lora": "#c1440e", "full": "#3b5ba5", "norms": "#8a8a8a"}
WORDS = {"organ": "organs", "lora": "LoRA", "full": "full fine-tuning", "norms": "norms alone"}
AXES = (
    ("cpu_seconds", 1.0, "CPU seconds of training (both cores together)"),
    ("bytes", 1e6, "megabytes that travel (float32)"),
    ("peak_mb", 1.0, "peak memory while training, MiB"),
)


def frontier(rows: Sequence[Mapping[str, Any]], cost: str) -> list[tuple[float, float]]:
    """Cost and perplexity of the rows that no cheaper row beats, from the cheapest.

    >>> frontier([{"c": 1, "perplexity": 9}, {"c": 2, "perplexity": 10}, {"c": 3, "perplexity": 7}], "c")
    [(1, 9), (3, 7)]
    """

    def better() -> Iterator[tuple[float, float]]:
        best = float("inf")
        for row in sorted(rows, key=lambda row: (row[cost], row["perplexity"])):
            if row["perplexity"] < best:
                best = row["perplexity"]
                yield row[cost], best

    return list(better())


def conclusion(result: Mapping[str, Any]) -> str:
    """What the comparison says in one sentence: at which of LoRA's times an organ reads as well."""
    budgets = result["budgets"]
    won = [b for b in budgets if b["organ"] is not None and b["organ"]["perplexity"] <= b["lora"]["perplexity"]]
    return (
        f"at {len(won)} of {len(budgets)} times at which a LoRA run ends, an organ that was done by then reads as well "
        f"or better ({result['texts']}; base {result['base']['test']['value']:.1f})"
    )


def organ_picture(result: Mapping[str, Any], *, out: Path) -> None:
    """Draw three frontiers with the spread over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.4), layout="constrained")
    for axes, (cost, unit, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES, strict=True):
        for kind, colour in COLOURS.items():
            rows = [row for row in result["rows"] if row["kind"] == kind]
            if not rows:
                continue
            for row in rows:
                low, high = row["spread"]
                error = [[row["perplexity"] - low], [high - row["perplexity"]]]
                axes.errorbar(row[cost] / unit, row["perplexity"], yerr=error, fmt="o", ms=4, color=colour, alpha=0.55)
            line = frontier(rows, cost)
            axes.plot(
                [at / unit for at, _ in line], [value for _, value in line], drawstyle="steps-post", color=colour,
                label=WORDS[kind],
            )  # fmt: skip
        axes.set_xlabel(label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(visible=True, alpha=0.25)
    first = figure.axes[0]
    first.set_ylabel("perplexity on held-out records")
    first.legend(frameon=False)
    said = conclusion(result)
    figure.suptitle(said[0].upper() + said[1:], fontsize=11)
    figure.savefig(out, dpi=110)
