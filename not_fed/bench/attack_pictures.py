"""The attacks as pictures: one drawing for a file and, in the reader's own colours, for the page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from not_fed.bench.attack_words import best_attack, named
from not_fed.report.figures import PicturesMissing
from not_fed.report.svg import SETTINGS, THEME, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = {
    "ink": "#1c2430", "soft": "#5b6675", "line": "#d8dde4", "accent": "#b3261e", "base": "#8a93a0", "card": "#ffffff",
    "s1": "#b3261e", "s2": "#1f6fb2", "s3": "#2e7d4f", "s4": "#8a5a00", "s5": "#6a3fa0", "s6": "#00727a",
}  # fmt: skip
KINDS = ("s1", "s2", "s3", "s4", "s5", "s6")
MARKERS = "osD^vP"
LEAST = 1e-3
DPI = 110

Colours = Mapping[str, str]


def require_pictures() -> None:
    """Find out before hours of training whether pictures can be drawn; raises PicturesMissing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PicturesMissing(
            where="attack", expected="matplotlib", got="not installed", hint="pip install 'not-fed[demo]'"
        ) from None


def png(result: Mapping[str, Any]) -> bytes:
    """The picture of an attack on white paper."""
    import matplotlib

    written = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        draw(result, PAPER).savefig(written, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return written.getvalue()


def svg(result: Mapping[str, Any], *, label: str) -> Markup:
    """The picture of an attack for a page, in the page's colours."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        return to_svg(draw(result, THEME), name=result["attack"], label=label)


def draw(result: Mapping[str, Any], colours: Colours) -> Figure:
    """The picture for either attack; claims are spelt out below it."""
    figure = _membership(result, colours) if result["attack"] == "membership" else _extraction(result, colours)
    claims = [f"{row['name']}: {named(row)}" for row in result["kinds"] if row.get("dp")]
    if claims:
        figure.supxlabel("\n".join(claims), fontsize=9, color=colours["soft"], x=0.01, ha="left")
    return figure


def _membership(result: Mapping[str, Any], colours: Colours) -> Figure:
    """ROC on logarithmic axes, and for each kind of training how members and others are spread."""
    from matplotlib.figure import Figure

    kinds = result["kinds"]
    figure = Figure(figsize=(10.5, max(4.4, 1.75 * len(kinds) + 0.6)), layout="constrained")
    grid = figure.add_gridspec(len(kinds), 2, width_ratios=(1.05, 1))
    _roc(figure.add_subplot(grid[:, 0]), kinds, colours)
    low = min(row["histogram"]["edges"][0] for row in kinds)
    high = max(row["histogram"]["edges"][-1] for row in kinds)
    for place, row in enumerate(kinds):
        axes = figure.add_subplot(grid[place, 1])
        _spread(axes, row, colours, limits=(low, high), last=place == len(kinds) - 1)
    return figure


def _roc(axes: Axes, kinds: Sequence[Mapping[str, Any]], colours: Colours) -> None:
    _style(axes, colours)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(LEAST, 1)
    axes.set_ylim(LEAST, 1.15)
    axes.plot([LEAST, 1], [LEAST, 1], color=colours["soft"], linewidth=1, linestyle=(0, (3, 3)), label="chance")
    for place, row in enumerate(kinds):
        attack = row["attacks"][best_attack(row)]
        points = [(max(false, LEAST), true) for false, true in attack["roc"] if true > 0]
        auc = attack["auc"]
        interval = f"{auc['value']:.2f} ({auc['ci_low']:.2f} to {auc['ci_high']:.2f})"
        legend = f"{row['name']}, {best_attack(row)}: AUC {interval}"
        axes.step([x for x, _ in points], [y for _, y in points], where="post", linewidth=2, label=legend,
                  color=colours[KINDS[place % len(KINDS)]])  # fmt: skip
    said = "dotted: the most that an epsilon allows"
    for place, row in enumerate(kinds):
        if row.get("dp"):
            axes.plot(*_allowed(row["dp"]), color=colours[KINDS[place % len(KINDS)]], linewidth=1.2, linestyle=":",
                      label=said)  # fmt: skip
            said = "_"
    shown = (0.001, 0.01, 0.1, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(shown, [f"{100 * rate:g} %" for rate in shown])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("others taken for members (false positive rate)")
    axes.set_ylabel("members found (true positive rate)")
    axes.set_title("The better attacker on each, 95 % intervals", fontsize=11, color=colours["ink"])
    _legend(axes, colours, loc="lower right")


def _allowed(claim: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """The true positive rates that no attacker exceeds, whatever they know: the region of (epsilon, delta).

    Source: Kairouz, Oh and Viswanath 2015, The Composition Theorem for Differential Privacy (arXiv 1311.0776).
    """
    factor, delta = math.exp(claim["epsilon"]), claim["delta"]
    xs = [LEAST * 10 ** (step / 40) for step in range(round(-40 * math.log10(LEAST)) + 1)]
    return xs, [min(1.0, factor * x + delta, 1 - (1 - delta - x) / factor) for x in xs]


def _spread(axes: Axes, row: Mapping[str, Any], colours: Colours, *, limits: tuple[float, float], last: bool) -> None:
    _style(axes, colours)
    edges = row["histogram"]["edges"]
    for name, colour, filled in (("others", colours["soft"], True), ("members", colours["accent"], False)):
        shares = [100 * share for share in row["histogram"][name]]
        axes.stairs(shares, edges, color=colour, fill=filled, alpha=0.35 if filled else 1, linewidth=1.8, label=name)
    axes.set_xlim(*limits)
    axes.set_ylabel("% of each")
    axes.set_title(str(row["name"]), fontsize=11, color=colours["ink"], loc="left")
    if last:
        axes.set_xlabel("loss under base minus organ, less its median, nats a token")
    else:
        axes.tick_params(labelbottom=False)
    _legend(axes, colours, loc="upper right")


def _extraction(result: Mapping[str, Any], colours: Colours) -> Figure:
    """Exposure against repeats: every secret a dot, means joined, luck shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, colours)
    kinds, most = result["kinds"], result["most_bits"]
    repeats = [one["repeats"] for one in kinds[0]["exposure"]]
    places = range(len(repeats))
    luck = [one["chance_below"] for one in kinds[0]["exposure"]]
    axes.fill_between(list(places), 0, luck, color=colours["line"], alpha=0.6, linewidth=0,
                      label="means by luck, in 95 of 100 cases")  # fmt: skip
    axes.axhline(most, color=colours["soft"], linewidth=1, linestyle=(0, (3, 3)))
    beside: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "fontsize": 9, "color": colours["soft"]}
    axes.annotate(f"first of {result['candidates']} candidates", (len(repeats) / 2 - 0.9, most), **beside)
    for number, row in enumerate(kinds):
        colour = colours["base"] if number == 0 else colours[KINDS[(number - 1) % len(KINDS)]]
        shift = 0.09 * (number - (len(kinds) - 1) / 2)
        xs = [place + shift for place in places]
        means = [one["mean_bits"]["value"] for one in row["exposure"]]
        out = sum(one["written_out"] for one in row["exposure"] if one["repeats"])
        axes.plot(xs, means, color=colour, linewidth=2, marker=MARKERS[number % len(MARKERS)], markersize=7,
                  label=f"{row['name']}: {out} of {_planted(row)} written out")  # fmt: skip
        for x, one in zip(xs, row["exposure"], strict=True):
            axes.plot([x] * len(one["bits"]), one["bits"], linestyle="none", marker=".", color=colour, alpha=0.45)
    axes.set_xticks(list(places), [f"{count}" if count else "0 (control)" for count in repeats])
    axes.set_ylim(0, 1.45 * most)  # room for the legend
    axes.set_xlabel("times that a secret stood in the training records")
    axes.set_ylabel("exposure, bits")
    _legend(axes, colours, loc="upper left")
    return figure


def _planted(row: Mapping[str, Any]) -> int:
    return sum(one["secrets"] for one in row["exposure"] if one["repeats"])


def _style(axes: Axes, colours: Colours) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(colours["line"])
    axes.tick_params(colors=colours["soft"], labelsize=9)
    axes.xaxis.label.set_color(colours["ink"])
    axes.yaxis.label.set_color(colours["ink"])
    axes.grid(color=colours["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")


def _legend(axes: Axes, colours: Colours, *, loc: str) -> None:
    axes.legend(loc=loc, fontsize=9, labelcolor=colours["ink"], frameon=True, facecolor=colours["card"],
                edgecolor=colours["line"], framealpha=0.9)  # fmt: skip
