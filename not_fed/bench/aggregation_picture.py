"""CPU seconds of a round's parties against the number of sites as a picture: ours, SecAgg+ and the plain mean."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from not_fed.bench.aggregation import MISSING, NAMES, SERVER, SITE, conclusion
from not_fed.errors import InputError

COLOURS = {"ours": "#0072b2", "secagg+": "#d55e00", "secagg+ sparse": "#e69f00", "plain": "#7f7f7f"}  # Okabe and Ito
MARKERS = {"ours": "o", "secagg+": "s", "secagg+ sparse": "D", "plain": "^"}
PANELS = {SITE: "one site", SERVER: "server, everybody there", MISSING: "server, uploads missing"}
WIDTH_IN, HEIGHT_IN, DPI = 9.6, 4.4, 150


def aggregation_picture(result: Mapping[str, Any]) -> bytes:
    """The result of `bench_aggregation` as PNG.

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
    panels = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    sites = [cohort["sites"] for cohort in result["cohorts"]]
    for axes, (part, title) in zip(panels, PANELS.items(), strict=True):
        for way in NAMES:
            _draw(axes, result, way, part)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sites, [str(number) for number in sites])
        axes.minorticks_off()
        axes.set_xlabel("sites")
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"CPU seconds, {result['parameters'] / 1e6:.1f} M numbers\n(log scale, lower is better)")
    panels[0].legend(frameon=False, fontsize=8.5)
    figure.suptitle(conclusion(result).replace("; ", "\n"), fontsize=9.5, x=0.02, ha="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw(axes: Any, result: Mapping[str, Any], way: str, part: str) -> None:  # noqa: ANN401
    rows = [row for row in result["rows"] if row["way"] == way and _part(row["part"]) == part]
    if not rows:
        return
    middle = [row["cpu_s"]["median"] for row in rows]
    below = [row["cpu_s"]["median"] - row["cpu_s"]["low"] for row in rows]
    above = [row["cpu_s"]["high"] - row["cpu_s"]["median"] for row in rows]
    axes.errorbar(
        [row["sites"] for row in rows], middle, yerr=[below, above], color=COLOURS[way], marker=MARKERS[way],
        markersize=5, linewidth=1.6, capsize=2, label=NAMES[way],
    )  # fmt: skip


def _part(name: str) -> str:
    return MISSING if "missing" in name else name
