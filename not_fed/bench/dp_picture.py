"""Perplexity against epsilon as a picture: a line a method, a dash a seed, the untrained base as the bar to beat."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from not_fed.bench.dp_settings import NAMES
from not_fed.errors import InputError

COLOURS = {"organ": "#0072b2", "lora": "#d55e00", "full": "#009e73"}  # Okabe and Ito: told apart by everybody
MARKERS = {"organ": "o", "lora": "s", "full": "^"}
WIDTH_IN, HEIGHT_IN, DPI = 7.2, 4.4, 150


def utility_picture(result: Mapping[str, Any]) -> bytes:
    """The result of `bench_utility` as PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            where="picture", expected="matplotlib", got="not installed", hint="pip install 'not-fed[bench]'"
        ) from None
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    epsilons = sorted({_order(row["epsilon"]) for row in result["rows"]})
    for setting in dict.fromkeys(row["setting"] for row in result["rows"]):
        _draw_setting(axes, result, setting, epsilons)
    base = [found["value"] for name, found in result["base"].items() if name.startswith("private")]
    axes.axhline(sum(base) / len(base), color="0.45", linestyle="--", linewidth=1)
    axes.annotate(
        f"base, untrained: {sum(base) / len(base):.1f}", (0, sum(base) / len(base)), xytext=(2, 3),
        textcoords="offset points", color="0.35", fontsize=9,
    )  # fmt: skip
    axes.set_xticks(range(len(epsilons)), [_name(epsilon).replace(" (", "\n(") for epsilon in epsilons])
    axes.set_xlim(-0.25, len(epsilons) - 0.55)
    axes.set_xlabel(f"epsilon at delta {result['delta']:g}, per record (one added or removed); smaller protects more")
    axes.set_ylabel("held-out perplexity (lower is better)")
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5)
    figure.suptitle(conclusion(result["rows"]), fontsize=10.5, x=0.02, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who reads best at each epsilon where all methods are compared: the sentence over the picture."""
    best: dict[str, list[str]] = {}
    for epsilon in sorted({_order(row["epsilon"]) for row in rows}):
        same = [row for row in rows if _order(row["epsilon"]) == epsilon]
        compared = [row for row in same if sum(other["setting"] == row["setting"] for other in same) > 1]
        if compared:
            winner = min(compared, key=lambda row: float(row["perplexity"]))
            best.setdefault(NAMES[winner["method"]].partition(",")[0], []).append(_name(epsilon))
    return "Best under one budget: " + "; ".join(f"{name} at ε = {', '.join(where)}" for name, where in best.items())


def _draw_setting(axes: Any, result: Mapping[str, Any], setting: str, epsilons: Sequence[float]) -> None:  # noqa: ANN401
    alone = len({row["method"] for row in result["rows"] if row["setting"] == setting}) == 1
    for method in NAMES:
        rows = [row for row in result["rows"] if (row["setting"], row["method"]) == (setting, method)]
        rows.sort(key=lambda row: _order(row["epsilon"]))
        if not rows:
            continue
        places = [epsilons.index(_order(row["epsilon"])) for row in rows]
        label = f"{NAMES[method]} ({rows[0]['weights'] / 1e6:.1f} M learn), {setting}"
        axes.plot(
            places, [row["perplexity"] for row in rows], color=COLOURS[method], marker=MARKERS[method], markersize=6,
            linewidth=1.6, linestyle=":" if alone else "-", markerfacecolor="white" if alone else None, label=label,
        )  # fmt: skip
        for place, row in zip(places, rows, strict=True):
            axes.plot([place] * len(row["values"]), row["values"], color=COLOURS[method], linestyle="none",
                      marker="_", markersize=9, alpha=0.6)  # fmt: skip


def _order(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else float(epsilon)


def _name(epsilon: float) -> str:
    return "∞ (no noise)" if epsilon == float("inf") else f"{epsilon:g}"
